// The recommendations: a grid of cards, best first.

import { arrangeChildren, byId, drawing, element, icon, itemName, itemPicture, nameElement, roveFocus } from "./dom.js";
import { colorClass, groupBySequence, mainReason, shadeClass } from "./model.js";

const HOVER_MS = 90; // time that a pointer rests on a card before its explanation is shown

/** Returns shares of a score as one bar with a segment for each branch. */
function shareBar(shares) {
  const bar = drawing("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
  let x = 0;
  for (const { sequence, parts } of groupBySequence(shares))
    for (const { modality, share } of parts) {
      const width = 100 * Math.max(0, share);
      const classes = `segment ${colorClass(sequence)} ${shadeClass(modality)}`;
      bar.append(drawing("rect", { class: classes, x, width, height: 6 }));
      x += width;
    }
  return bar;
}

/**
 * Makes the grid.
 * @param {object} handlers `preview(item)`: a card is hovered or focused; `choose(item)`: a card is pressed;
 *   `add(item)`: an item is added to the history
 */
export function makeCards(handlers) {
  const list = byId("cards");
  const updateTabStop = roveFocus(list);
  let cards = new Map(); // item id -> {li, item}

  /** Shows items, best first; `possessive` ("your", "their") says whose history they are for. */
  function show(items, possessive) {
    const previous = cards;
    cards = new Map(items.map((item, index) => {
      const card = previous.get(item.item_id) ?? makeCard(item);
      card.item = item;
      describe(card, index + 1, possessive);
      return [item.item_id, card];
    }));
    arrangeChildren(list, [...cards.values()].map((card) => card.li));
    list.setAttribute("aria-busy", "false");
    updateTabStop();
  }

  function makeCard(item) {
    const card = { item };
    const main = element("button", { type: "button", class: "main", "aria-pressed": "false",
      click: () => handlers.choose(card.item),
      focus: () => main.matches(":focus-visible") && handlers.preview(card.item) },
    element("span", { class: "rank" }), itemPicture(item, colorClass(item.domain), 320),
    element("span", { class: "name", title: itemName(item) }, nameElement(item)), element("span", { class: "shares-bar" }),
    element("span", { class: "hidden note" }));
    const label = `Add to the history: ${itemName(item)}`;
    const add = element("button", { type: "button", class: "plus", "aria-label": label, title: "Add to the history",
      click: () => handlers.add(card.item) }, icon("add"));
    card.li = element("li", { class: `card ${colorClass(item.domain)}` }, main, add);
    let timer;
    card.li.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") timer = setTimeout(() => handlers.preview(card.item), HOVER_MS);
    });
    card.li.addEventListener("pointerleave", () => clearTimeout(timer));
    return card;
  }

  function describe({ li, item }, rank, possessive) {
    li.querySelector(".rank").textContent = rank;
    li.querySelector(".shares-bar").replaceChildren(...(item.shares ? [shareBar(item.shares)] : []));
    const reason = item.shares ? mainReason(item.shares, possessive) : null;
    li.querySelector(".note").textContent = reason ? `. Because of ${reason[0]}, mostly ${reason[1]}.` : "";
  }

  /** Marks the card of the explained item, and whether its explanation is pinned. */
  function select(itemId, isPinned) {
    for (const [id, { li }] of cards) {
      li.classList.toggle("selected", id === itemId);
      li.querySelector(".main").setAttribute("aria-pressed", id === itemId && isPinned);
    }
  }

  /** Shows that recommendations are being fetched; the present cards stay until then. */
  function showBusy(k) {
    list.setAttribute("aria-busy", "true");
    if (cards.size) return;
    const ghost = () =>
      element("li", { class: "card ghost", "aria-hidden": "true" }, element("span", { class: "picture" }));
    list.replaceChildren(...Array.from({ length: k }, ghost));
  }

  /** Shows an error in place of cards. */
  function showError(line) {
    cards = new Map();
    list.setAttribute("aria-busy", "false");
    list.replaceChildren(element("li", { class: "wide" }, line));
  }

  return { show, select, showBusy, showError, cardOf: (itemId) => cards.get(itemId)?.li };
}
