// The history: items oldest first, with the attention to each on top.

import { announce, arrangeChildren, byId, element, icon, itemName, itemPicture, nameElement, roveFocus } from "./dom.js";
import { openMenu } from "./menu.js";
import { colorClass, formatCount, formatPercent, model, sumOfShares } from "./model.js";

const MAX_BAR_HEIGHT = 52; // pixels
const NUM_GHOSTS = 5; // empty places of an empty history

/**
 * Makes the timeline of a history: entries {item}, where item.is_unknown marks an id that the catalog does not have.
 * An item may occur in several entries.
 * @param {object} handlers `change(history, message)`: entries are moved or removed; `add()`: the tile that adds items
 *   is pressed; `actionsFor(item)`: further actions for the menu of a tile
 */
export function makeTimeline(handlers) {
  const list = byId("timeline");
  const updateTabStop = roveFocus(list);
  const tiles = new Map(); // entry -> li
  let history = [];
  let draggedEntry = null;
  const addTile = element("li", { class: "tile add" },
    element("button", { type: "button", class: "main", click: () => handlers.add() },
      element("span", { class: "picture" }, icon("add")), element("span", { class: "axis" }),
      element("span", { class: "name" }, "Add items")));

  /** Shows a history: that of a user, or the visitor's own if `userId` is null. */
  function show(entries, userId) {
    const scrollToEnd = entries.length > history.length || entries[0] !== history[0];
    history = entries;
    for (const entry of tiles.keys()) if (!entries.includes(entry)) tiles.delete(entry);
    for (const entry of entries) if (!tiles.has(entry)) tiles.set(entry, makeTile(entry));
    const numKnown = entries.filter((entry) => !entry.item.is_unknown).length;
    let numIgnored = Math.max(0, numKnown - model.max_length);
    entries.forEach((entry, index) => {
      const isIgnored = !entry.item.is_unknown && numIgnored-- > 0;
      label(tiles.get(entry), entry, index, isIgnored);
    });
    const isEmpty = entries.length === 0;
    arrangeChildren(list, isEmpty ? emptyTiles() : [...entries.map((entry) => tiles.get(entry)), addTile]);
    list.classList.toggle("empty", isEmpty);
    updateTabStop();
    if (scrollToEnd) list.parentElement.scrollLeft = list.parentElement.scrollWidth;
    byId("history-title").textContent = userId === null ? "Your history" : `User ${userId}`;
    byId("clear").hidden = isEmpty;
    summarize();
  }

  function summarize() {
    const note = byId("history-note");
    if (!history.length) {
      note.textContent = "Add items, or choose a user of the dataset.";
      return;
    }
    const chips = model.domains
      .map(({ name }) => [name, history.filter((entry) => entry.item.domain === name).length])
      .filter(([, number]) => number)
      .map(([name, number]) => element("span", { class: `chip ${colorClass(name)}` }, `${number} ${name}`));
    const limit = history.length > model.max_length ? `only the last ${model.max_length} count` : null;
    note.replaceChildren(...chips, ...(limit ? [element("span", {}, limit)] : []));
  }

  const ghostTile = () => element("li", { class: "tile ghost", "aria-hidden": "true" }, element("span",
    { class: "attention" }), element("span", { class: "picture" }), element("span", { class: "axis" }),
  element("span", { class: "name" }));
  const emptyTiles = () => [addTile, ...Array.from({ length: NUM_GHOSTS }, ghostTile)];

  /** Holds the place of a history that is being fetched. */
  function showBusy() {
    list.classList.remove("empty");
    list.replaceChildren(...Array.from({ length: NUM_GHOSTS }, ghostTile));
  }

  function makeTile(entry) {
    const { item } = entry;
    const color = colorClass(item.domain);
    const main = element("button", { type: "button", class: "main", "aria-haspopup": "true",
      click: () => openTileMenu(entry, main) },
    itemPicture(item, color), element("span", { class: "axis" }),
    element("span", { class: "name", title: itemName(item) }, nameElement(item)), element("span", { class: "hidden note" }));
    const li = element("li", { class: `tile ${item.is_unknown ? "unknown" : color}`, draggable: "true" },
      element("span", { class: "attention", "aria-hidden": "true" }), main);
    li.addEventListener("keydown", (event) => onKey(event, entry));
    li.addEventListener("dragstart", (event) => {
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", itemName(item));
      draggedEntry = entry;
    });
    li.addEventListener("dragover", (event) => {
      if (draggedEntry) event.preventDefault();
      li.classList.toggle("dragged-over", draggedEntry !== null && draggedEntry !== entry);
    });
    li.addEventListener("dragleave", () => li.classList.remove("dragged-over"));
    li.addEventListener("drop", (event) => {
      event.preventDefault();
      li.classList.remove("dragged-over");
      if (draggedEntry && draggedEntry !== entry)
        move(draggedEntry, history.indexOf(entry) - history.indexOf(draggedEntry));
    });
    li.addEventListener("dragend", () => (draggedEntry = null));
    return li;
  }

  function openTileMenu(entry, main) {
    const index = history.indexOf(entry);
    openMenu(main, nameElement(entry.item), [
      ...(entry.item.is_unknown ? [] : handlers.actionsFor(entry.item)),
      { label: "Move earlier", icon: "earlier", run: () => move(entry, -1), disabled: index === 0 },
      { label: "Move later", icon: "later", run: () => move(entry, 1), disabled: index === history.length - 1 },
      { label: "Remove from the history", icon: "close", run: () => remove(entry) },
    ]);
  }

  function label(li, entry, index, isIgnored) {
    const place = entry.item.is_unknown ? "not in the catalog, skipped" : entry.item.domain;
    const ignored = isIgnored ? `, ignored: only the last ${model.max_length} count` : "";
    li.classList.toggle("ignored", isIgnored);
    li.querySelector(".note").textContent = `, ${place}, ${index + 1} of ${history.length}${ignored}`;
  }

  function onKey(event, entry) {
    if (event.key === "Delete" || event.key === "Backspace") remove(entry);
    else if (event.altKey && event.key === "ArrowLeft") move(entry, -1);
    else if (event.altKey && event.key === "ArrowRight") move(entry, 1);
    else return;
    event.preventDefault();
  }

  function move(entry, steps) {
    const from = history.indexOf(entry);
    const to = from + steps;
    if (to < 0 || to >= history.length) return;
    handlers.change(history.toSpliced(from, 1).toSpliced(to, 0, entry));
    announce(`${itemName(entry.item)} is now ${to + 1} of ${history.length}`);
  }

  function remove(entry) {
    const index = history.indexOf(entry);
    const remaining = history.toSpliced(index, 1);
    handlers.change(remaining, `${itemName(entry.item)} removed`); // the focus goes to the next tile
    announce(`${itemName(entry.item)} removed, ${formatCount(remaining.length, "item")} left`);
  }

  /**
   * Shows how much each entry contributes to a recommendation.
   * @param {Map<object, {color: string, share: number}[]>} partsByEntry empty shows nothing
   */
  function showAttention(partsByEntry) {
    const highest = Math.max(...[...partsByEntry.values()].map(sumOfShares), 0.02);
    const minLabeled = Math.max(0.01, highest / 2);
    for (const [entry, li] of tiles) {
      const parts = partsByEntry.get(entry) ?? [];
      const sum = sumOfShares(parts);
      const segments = parts.filter((part) => part.share > 0).map((part) => {
        const segment = element("span", { class: `segment ${part.color}` });
        segment.style.height = `${(MAX_BAR_HEIGHT * part.share) / highest}px`;
        return segment;
      });
      const figure = sum >= minLabeled ? [element("span", { class: "figure" }, formatPercent(sum))] : [];
      li.querySelector(".attention").replaceChildren(...figure, ...segments);
    }
  }

  return { show, showBusy, showAttention, tileOf: (entry) => tiles.get(entry) };
}
