// The recommendations: a grid of cards, best first.

import { arrangeChildren, drawing, element, icon, itemName, itemPicture, nameElement, roveFocus } from "./dom.js";
import { openMenu } from "./menu.js";
import { colorClass, formatAttribute, formatPercent, groupBySequence, phrases, shadeClass } from "./model.js";

const NUM_FIRST = 24; // cards that are drawn at once where there were none
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
 * Makes the grid in an <ol>.
 * @param {object} handlers `preview(item)`: a card is hovered or focused; `choose(item)`: a card is pressed;
 *   `add(item)`: an item is added to the history; `actionsFor(item)`: the actions of its menu
 */
export function makeCards(list, handlers) {
  const updateTabStop = roveFocus(list);
  let cards = new Map(); // item id -> {li, item}
  let selection = [null, false]; // the last one of `select`

  /** Shows items, best first; `targetId` is the item that was chosen next, `columns` are attributes to show. */
  function show(items, { targetId, columns }) {
    const previous = cards;
    const next = new Map();
    cards = next;
    const draw = (number) => {
      if (cards !== next) return; // a later list has replaced this one
      for (const item of items.slice(next.size, number)) {
        const card = previous.get(item.item_id) ?? makeCard(item);
        card.item = item;
        next.set(item.item_id, card);
        describe(card, next.size, item.item_id === targetId, columns);
      }
      arrangeChildren(list, [...next.values()].map((card) => card.li));
      updateTabStop();
      select(...selection);
    };
    draw(previous.size ? items.length : NUM_FIRST);
    if (next.size < items.length) setTimeout(draw, 0, items.length);
    list.setAttribute("aria-busy", "false");
    list.classList.remove("stale");
  }

  function makeCard(item) {
    const card = { item };
    const main = element("button", { type: "button", class: "main", "aria-pressed": "false",
      click: () => handlers.choose(card.item),
      focus: () => main.matches(":focus-visible") && handlers.preview(card.item) },
    element("span", { class: "rank" }), itemPicture(item, colorClass(item.domain), 320),
    element("span", { class: "name", title: itemName(item) }, nameElement(item)), element("span", { class: "facts" }),
    element("span", { class: "reason" }),
    element("span", { class: "shares-bar" }));
    const label = `Add to the history: ${itemName(item)}`;
    const add = element("button", { type: "button", class: "plus", "aria-label": label, title: "Add to the history",
      click: () => handlers.add(card.item) }, icon("add"));
    const more = element("button", { type: "button", class: "plus actions", "aria-label": `More about ${itemName(item)}`,
      title: "More", "aria-haspopup": "true",
      click: () => openMenu(more, nameElement(card.item), handlers.actionsFor(card.item)) }, icon("more"));
    card.li = element("li", { class: `card ${colorClass(item.domain)}` }, main, add, more);
    let timer;
    card.li.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") timer = setTimeout(() => handlers.preview(card.item), HOVER_MS);
    });
    card.li.addEventListener("pointerleave", () => clearTimeout(timer));
    return card;
  }

  function describe({ li, item }, rank, isTarget, columns) {
    li.classList.toggle("hit", isTarget);
    li.querySelector(".rank").textContent = isTarget ? `${rank} ${phrases.chosen_next}` : rank;
    li.querySelector(".facts").textContent = columns.map((name) => formatAttribute(item.attributes[name])).filter(Boolean)
      .join(" · ");
    li.querySelector(".shares-bar").replaceChildren(...(item.shares ? [shareBar(item.shares)] : []));
    const reason = item.reason
      ? [element("span", { class: "hidden" }, ". "), `${phrases.because} `, element("i", {}, nameElement(item.reason)),
        `, ${formatPercent(item.reason.share)}`]
      : [];
    li.querySelector(".reason").replaceChildren(...reason);
  }

  /** Marks the card of the explained item, and whether its explanation is pinned. */
  function select(itemId, isPinned) {
    selection = [itemId, isPinned];
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

  /** Shows that the cards are those of an earlier history, as the server failed. */
  function showStale() {
    list.setAttribute("aria-busy", "false");
    list.classList.add("stale");
    for (const ghost of list.querySelectorAll(".ghost")) ghost.remove();
  }

  return { show, select, showBusy, showStale, cardOf: (itemId) => cards.get(itemId)?.li };
}
