// The recommendations: a grid of pictures, best first.

import { arrange, byId, draw, el, icon, named, nameOf, picture, rove } from "./dom.js";
import { bySequence, hueOf, reason, shadeOf } from "./model.js";

const HESITATION = 90; // milliseconds that a pointer must rest on a card, so that crossing one means nothing

/** Draws shares as one bar of many colors. */
export function shareBar(shares) {
  const bar = draw("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
  let x = 0;
  for (const { sequence, parts } of bySequence(shares))
    for (const { modality, share } of parts) {
      const width = 100 * Math.max(0, share);
      bar.append(draw("rect", { class: `bit ${hueOf(sequence)} ${shadeOf(modality)}`, x, width, height: 6 }));
      x += width;
    }
  return bar;
}

/**
 * Makes the grid.
 * @param {object} on what to do: `point(item)` when somebody looks at a card, `choose(item)` when they press it,
 *   `add(item)` when they take it into the history
 */
export function makeCards(on) {
  const list = byId("cards");
  const settle = rove(list);
  let cards = new Map(); // id -> {li, item}

  /** Shows items, best first; `whose` history made them. */
  function show(items, whose) {
    const old = cards;
    cards = new Map(items.map((item, place) => {
      const card = old.get(item.item_id) ?? make(item);
      card.item = item;
      describe(card, place + 1, whose);
      return [item.item_id, card];
    }));
    arrange(list, [...cards.values()].map((card) => card.li));
    list.setAttribute("aria-busy", "false");
    settle();
  }

  function make(item) {
    const card = { item };
    const main = el("button", { type: "button", class: "main", "aria-pressed": "false", click: () => on.choose(card.item),
      focus: () => main.matches(":focus-visible") && on.point(card.item) },
    el("span", { class: "rank" }), picture(item, hueOf(item.domain), 320),
    el("span", { class: "name", title: nameOf(item) }, named(item)), el("span", { class: "reason" }),
    el("span", { class: "hidden note" }));
    const add = el("button", { type: "button", class: "plus", "aria-label": `Add to the history: ${nameOf(item)}`,
      title: "Add to the history", click: () => on.add(card.item) }, icon("add"));
    card.li = el("li", { class: `card ${hueOf(item.domain)}` }, main, add);
    let timer;
    card.li.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") timer = setTimeout(() => on.point(card.item), HESITATION);
    });
    card.li.addEventListener("pointerleave", () => clearTimeout(timer));
    return card;
  }

  function describe({ li, item }, rank, whose) {
    li.querySelector(".rank").textContent = rank;
    const told = item.shares ?? null;
    li.querySelector(".reason").replaceChildren(...(told ? [shareBar(told)] : []));
    const words = told ? reason(told, whose) : null;
    li.querySelector(".note").textContent = words ? `. Because of ${words[0]}, mostly ${words[1]}.` : "";
  }

  /** Marks the card that is explained, and whether it stays so. */
  function mark(id, pinned) {
    for (const [own, { li }] of cards) {
      li.classList.toggle("shown", own === id);
      li.querySelector(".main").setAttribute("aria-pressed", own === id && pinned);
    }
  }

  /** Shows that an answer is under way; the cards of the last one stay until it is there. */
  function wait(k) {
    list.setAttribute("aria-busy", "true");
    if (cards.size) return;
    const ghost = () => el("li", { class: "card ghost", "aria-hidden": "true" }, el("span", { class: "picture" }));
    list.replaceChildren(...Array.from({ length: k }, ghost));
  }

  /** Shows a line in place of cards. */
  function fail(line) {
    cards = new Map();
    list.setAttribute("aria-busy", "false");
    list.replaceChildren(el("li", { class: "wide" }, line));
  }

  return { show, mark, wait, fail, cardOf: (id) => cards.get(id)?.li };
}
