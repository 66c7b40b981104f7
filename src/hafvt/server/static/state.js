// The state of the page in the fragment of its address: a link or a reload shows the same state.

const MAX_ITEMS = 200; // of a history
const MAX_ID_LENGTH = 256; // characters

/** Returns the state in the address: user or items, domain, number of recommendations, item to explain. */
export function readState() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const k = Number(parameters.get("k"));
  return {
    userId: parameters.get("user"),
    itemIds: parameters.getAll("item").filter((id) => id.length <= MAX_ID_LENGTH).slice(-MAX_ITEMS),
    domain: parameters.get("domain"),
    k: Number.isInteger(k) && k >= 1 && k <= 100 ? k : 10,
    explainedId: parameters.get("explain"),
  };
}

/** Writes the state to the address. */
export function writeState({ userId, itemIds, domain, k, explainedId }) {
  const parameters = new URLSearchParams();
  if (userId !== null) parameters.set("user", userId);
  else for (const id of itemIds) parameters.append("item", id);
  parameters.set("domain", domain);
  parameters.set("k", k);
  if (explainedId) parameters.set("explain", explainedId);
  const fragment = `#${parameters}`;
  if (fragment !== location.hash) window.history.replaceState(null, "", fragment);
}
