// What is to be seen, in the address: a link or a reload shows the same view.

const MOST = 200; // items of a history
const LONGEST = 256; // characters of an id; no catalog has longer ones

/** Reads the view from the address: who or which items, the domain, how many, what is explained. */
export function read() {
  const told = new URLSearchParams(location.hash.slice(1));
  const k = Number(told.get("k"));
  return {
    person: told.get("person"),
    history: told.getAll("item").filter((id) => id.length <= LONGEST).slice(-MOST),
    domain: told.get("in"),
    k: Number.isInteger(k) && k >= 1 && k <= 100 ? k : 10,
    why: told.get("why"),
  };
}

/** Writes the view into the address. */
export function write({ person, history, domain, k, why }) {
  const told = new URLSearchParams();
  if (person !== null) told.set("person", person);
  else for (const id of history) told.append("item", id);
  told.set("in", domain);
  told.set("k", k);
  if (why) told.set("why", why);
  const address = `#${told}`;
  if (address !== location.hash) window.history.replaceState(null, "", address);
}
