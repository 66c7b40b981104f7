// The history: oldest first, with what the model looked at on top.

import { arrange, byId, el, icon, named, nameOf, picture, rove, say } from "./dom.js";
import { count, hueOf, model, percent } from "./model.js";

const HEIGHT = 52; // pixels of the highest bar

/**
 * Makes the timeline.
 * @param {(history: object[]) => void} changed is told the new history when somebody reorders or removes
 * @param {() => void} add opens the search
 */
export function makeTimeline(changed, add) {
  const list = byId("timeline");
  const settle = rove(list);
  const tiles = new Map(); // entry -> li
  let history = [];
  const addTile = el("li", { class: "tile add" },
    el("button", { type: "button", class: "main", click: add }, el("span", { class: "picture" }, icon("add")),
      el("span", { class: "axis" }), el("span", { class: "name" }, "Add items")));

  /** Shows a history of entries {item}, where item.unknown tells that the catalog has no such item. */
  function show(entries, person) {
    const grown = entries.length > history.length || entries[0] !== history[0];
    history = entries;
    for (const entry of tiles.keys()) if (!entries.includes(entry)) tiles.delete(entry);
    for (const entry of entries) if (!tiles.has(entry)) tiles.set(entry, tile(entry));
    entries.forEach((entry, place) => label(tiles.get(entry), entry, place));
    const empty = entries.length === 0;
    arrange(list, empty ? ghosts() : [...entries.map((entry) => tiles.get(entry)), addTile]);
    list.classList.toggle("empty", empty);
    settle();
    if (grown) list.parentElement.scrollLeft = list.parentElement.scrollWidth;
    byId("history-title").textContent = person === null ? "Your history" : `Person ${person}`;
    byId("clear").hidden = empty;
    summarize();
  }

  function summarize() {
    const about = byId("history-about");
    if (!history.length) {
      about.textContent = "Put one together from pictures and titles, or pick a person.";
      return;
    }
    const chips = model.domains
      .map((domain) => [domain.name, history.filter((entry) => entry.item.domain === domain.name).length])
      .filter(([, number]) => number)
      .map(([name, number]) => el("span", { class: `chip ${hueOf(name)}` }, `${number} ${name}`));
    const unread = history.length - model.max_length;
    const note = unread > 0 ? `the last ${model.max_length} count` : null;
    about.replaceChildren(...chips, ...(note ? [el("span", {}, note)] : []));
  }

  function ghosts() {
    const ghost = () => el("li", { class: "tile ghost", "aria-hidden": "true" }, el("span", { class: "picture" }),
      el("span", { class: "axis" }));
    return [addTile, ...Array.from({ length: 5 }, ghost)];
  }

  function tile(entry) {
    const { item } = entry;
    const button = (name, what, act) =>
      el("button", { type: "button", class: name, "aria-label": `${what} ${nameOf(item)}`, click: act }, icon(name));
    const li = el("li", { class: `tile ${item.unknown ? "unknown" : hueOf(item.domain)}`, draggable: "true" },
      el("span", { class: "look", "aria-hidden": "true" }),
      el("button", { type: "button", class: "main" }, picture(item, hueOf(item.domain)), el("span", { class: "axis" }),
        el("span", { class: "name", title: nameOf(item) }, named(item)), el("span", { class: "hidden note" })),
      el("span", { class: "moves" }, button("earlier", "Move earlier:", () => move(entry, -1)),
        button("close", "Remove", () => remove(entry)), button("later", "Move later:", () => move(entry, 1))));
    li.addEventListener("keydown", (event) => keys(event, entry));
    li.addEventListener("dragstart", (event) => {
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", nameOf(item));
      dragged = entry;
    });
    li.addEventListener("dragover", (event) => {
      if (dragged) event.preventDefault();
    });
    li.addEventListener("drop", (event) => {
      event.preventDefault();
      if (dragged && dragged !== entry) move(dragged, history.indexOf(entry) - history.indexOf(dragged));
    });
    li.addEventListener("dragend", () => (dragged = null));
    return li;
  }
  let dragged = null;

  function label(li, entry, place) {
    const where = entry.item.unknown ? "not in the catalog, skipped" : entry.item.domain;
    li.querySelector(".note").textContent = `, ${where}, ${place + 1} of ${history.length}`;
    li.querySelector(".earlier").disabled = place === 0;
    li.querySelector(".later").disabled = place === history.length - 1;
  }

  function keys(event, entry) {
    if (event.key === "Delete" || event.key === "Backspace") remove(entry);
    else if (event.altKey && event.key === "ArrowLeft") move(entry, -1);
    else if (event.altKey && event.key === "ArrowRight") move(entry, 1);
    else return;
    event.preventDefault();
  }

  function move(entry, by) {
    const from = history.indexOf(entry);
    const to = from + by;
    if (to < 0 || to >= history.length) return;
    const moved = history.toSpliced(from, 1).toSpliced(to, 0, entry);
    changed(moved);
    say(`${nameOf(entry.item)} is now ${to + 1} of ${moved.length}`);
  }

  function remove(entry) {
    const place = history.indexOf(entry);
    const inside = tiles.get(entry)?.contains(document.activeElement);
    const left = history.toSpliced(place, 1);
    changed(left);
    say(`${nameOf(entry.item)} removed, ${count(left.length, "item")} left`);
    if (!inside) return;
    const next = left.length ? tiles.get(left[Math.min(place, left.length - 1)]) : addTile;
    next.querySelector(".main").focus();
  }

  /**
   * Shows how much of a recommendation each entry accounts for.
   * @param {Map<object, {hue: string, share: number}[]>} looks by entry; empty shows nothing
   */
  function look(looks) {
    const total = (parts) => parts.reduce((sum, part) => sum + part.share, 0);
    const highest = Math.max(...[...looks.values()].map(total), 0.02);
    const telling = Math.max(0.01, highest / 2);
    for (const [entry, li] of tiles) {
      const parts = looks.get(entry) ?? [];
      const sum = total(parts);
      const bars = parts.filter((part) => part.share > 0).map((part) => {
        const bar = el("span", { class: `bit ${part.hue}` });
        bar.style.height = `${(HEIGHT * part.share) / highest}px`;
        return bar;
      });
      const figure = sum >= telling ? el("span", { class: "figure" }, percent(sum)) : null;
      li.querySelector(".look").replaceChildren(...(figure ? [figure] : []), ...bars);
    }
  }

  return { show, look, tileOf: (entry) => tiles.get(entry) };
}
