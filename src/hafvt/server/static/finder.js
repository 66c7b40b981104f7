// Where a history starts from: items found by their titles, or a person.

import { ask, calm, latest } from "./api.js";
import { byId, el, icon, named, nameOf, picture, rove, trouble } from "./dom.js";
import { count, hueOf, model } from "./model.js";

const PAGE = 24; // items asked for at once
const CROWD = 12; // people asked for at once
const FACES = 5; // pictures beside a person
const TYPING = 160; // milliseconds without a key until the search starts

/** Makes the choice of one domain among radio buttons; `all` is the label of a first one for all of them. */
export function domainChoice(fieldset, name, all, chosen) {
  const option = (value, label, hue) => {
    const input = el("input", { type: "radio", name, value, change: () => chosen(value) });
    fieldset.append(el("label", {}, input, el("span", { class: hue ? `chip ${hue}` : "" }, el("bdi", {}, label))));
    return input;
  };
  const inputs = all ? [option("", all, "")] : [];
  for (const domain of model.domains) inputs.push(option(domain.name, domain.name, hueOf(domain.name)));
  return (value) => {
    for (const input of inputs) input.checked = input.value === value;
  };
}

/**
 * Makes the finder.
 * @param {object} on what to do: `toggle(item)` when somebody picks an item, `person(id)` when they pick a person
 */
export function makeFinder(on) {
  const query = byId("query");
  const who = byId("who");
  const settleItems = rove(byId("results"));
  const settlePeople = rove(byId("people"));
  let domain = "";
  let chosen = new Set();
  let loadedPeople = false;

  const mark = () => {
    for (const button of byId("results").querySelectorAll(".main"))
      button.setAttribute("aria-pressed", chosen.has(button.dataset.id));
  };

  function thumb(item) {
    const button = el("button", { type: "button", class: "main", "aria-pressed": "false", click: () => on.toggle(item) },
      picture(item, hueOf(item.domain)), el("span", { class: "tick" }, icon("check")),
      el("span", { class: `name chip ${hueOf(item.domain)}`, title: nameOf(item) }, named(item)),
      el("span", { class: "hidden" }, `, ${item.domain}`));
    button.dataset.id = item.item_id;
    return el("li", {}, button);
  }

  const items = latest(async (signal, offset = 0) => {
    const asked = new URLSearchParams({ limit: PAGE, offset });
    if (query.value.trim()) asked.set("query", query.value.trim());
    if (domain) asked.set("domain", domain);
    const list = byId("results");
    try {
      const found = await ask(`/items?${asked}`, { signal });
      const new_ = found.items.map(thumb);
      if (offset) list.append(...new_);
      else list.replaceChildren(...new_);
      byId("found").textContent = found.total
        ? `${count(found.total, "item")}${query.value.trim() ? " found" : ""}`
        : "Nothing found. Try fewer words.";
      more("more-items", list, found.total, () => items(list.children.length));
      mark();
      settleItems();
      if (offset) new_[0]?.querySelector(".main").focus();
    } catch (problem) {
      if (signal.aborted) throw problem;
      byId("found").textContent = "";
      byId("more-items").hidden = true;
      list.replaceChildren(el("li", { class: "wide" }, trouble(problem, () => items(0))));
    }
  });

  function more(id, list, total, next) {
    const button = byId(id);
    button.hidden = list.children.length >= total;
    button.onclick = next;
  }

  function face(person) {
    const faces = person.history.slice(-FACES).map((item) => picture(item, hueOf(item.domain)));
    return el("li", {}, el("button", { type: "button", class: "main person", click: () => on.person(person.user_id) },
      el("span", { class: "faces", "aria-hidden": "true" }, ...faces),
      el("span", { class: "name" }, el("bdi", {}, person.user_id))));
  }

  const people = latest(async (signal, offset = 0) => {
    const list = byId("people");
    try {
      const found = await ask(`/users?limit=${CROWD}&offset=${offset}`, { signal });
      const new_ = found.users.map(face);
      if (offset) list.append(...new_);
      else list.replaceChildren(...new_);
      loadedPeople = true;
      byId("crowd").textContent = count(found.total, "person", "people");
      byId("anybody").onclick = () => anybody(found.total);
      more("more-people", list, found.total, () => people(list.children.length));
      settlePeople();
      if (offset) new_[0]?.querySelector(".main").focus();
    } catch (problem) {
      if (signal.aborted) throw problem;
      list.replaceChildren(el("li", {}, trouble(problem, () => people(0))));
    }
  });

  const anybody = latest(async (signal, total) => {
    const found = await ask(`/users?limit=1&offset=${Math.floor(Math.random() * total)}`, { signal });
    if (found.users.length) on.person(found.users[0].user_id);
  });

  const tabs = [byId("tab-items"), byId("tab-people")];

  function choose(tab) {
    for (const one of tabs) {
      one.setAttribute("aria-selected", one === tab);
      one.tabIndex = one === tab ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = one !== tab;
    }
    if (tab === tabs[1] && !loadedPeople) people(0);
  }

  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      tabs[1 - place].focus();
      choose(tabs[1 - place]);
    });
  }
  query.addEventListener("input", calm(TYPING, () => items(0)));
  query.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    byId("results").querySelector(".main[tabindex='0']")?.focus();
  });
  who.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && who.value.trim()) on.person(who.value.trim());
  });

  /** Fills the finder once it is known what the server has. */
  function start() {
    domainChoice(byId("finder-domains"), "search-in", "All", (value) => {
      domain = value;
      items(0);
    })("");
    if (!model.has_users) byId("tab-people").parentElement.hidden = true;
    items(0);
  }

  /** Marks the items that the history holds. */
  function hold(ids) {
    chosen = new Set(ids);
    mark();
  }

  return { start, hold };
}
