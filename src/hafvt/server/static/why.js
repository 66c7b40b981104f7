// Why an item is recommended: shares of the score as bars, and what the model looked at.

import { byId, draw, el, icon, named, nameOf, picture } from "./dom.js";
import { bySequence, hueOf, modalityName, percent, reason, sequenceName, shadeOf } from "./model.js";

const LOOKED = 3; // items listed

/**
 * Makes the panel.
 * @param {object} on what to do: `close()`, `add(item)`, `branch({sequence, modality} | null)` when somebody asks
 *   for the attention of one branch alone, or of all
 */
export function makeWhy(on) {
  const panel = byId("why");
  let looked = null; // the part that attention fills
  let chosen = null; // the branch whose attention is shown

  /** Shows an item; `by` tells who ranked it, `whose` history did. */
  function show(item, { rank, by, whose, pinned }) {
    chosen = null;
    looked = el("div", { class: "looked" });
    const told = item.shares ?? null;
    panel.replaceChildren(
      el("button", { type: "button", class: "close", "aria-label": "Close the explanation", click: on.close },
        icon("close")),
      el("div", { class: "subject" }, picture(item, hueOf(item.domain)), el("div", {},
        el("p", { class: "soft" }, `Number ${rank} in `, el("bdi", {}, item.domain)),
        el("h2", { id: "why-title", tabindex: "-1" }, named(item)))),
      story(told, by, item, whose),
      ...(told ? [el("h3", {}, "Where the score comes from"), bars(told), looked] : []),
      el("div", { class: "row" }, el("button", { type: "button", class: "button", click: () => on.add(item) },
        "Add to the history")),
    );
    panel.classList.toggle("pinned", pinned);
    panel.hidden = false;
  }

  function story(told, by, item, whose) {
    if (told) {
      const [history, modality] = reason(told, whose);
      return el("p", { class: "story" }, "Because of ", el("b", {}, el("bdi", {}, history)), ", mostly ",
        el("b", {}, el("bdi", {}, modality)), ".");
    }
    const text = by === "popularity"
      ? `A popular item: users chose it ${item.train_count.toLocaleString("en")} times in the training data.`
      : "This model cannot say where its scores come from.";
    return el("p", { class: "story" }, text);
  }

  function bars(told) {
    const all = bySequence(told);
    const widest = Math.max(...all.flatMap(({ parts }) => parts.map((part) => part.share)), 1e-9);
    return el("ul", { class: "shares" }, ...all.map(({ sequence, parts, share }) =>
      el("li", { class: hueOf(sequence) },
        el("p", { class: "sequence" }, el("span", { class: "chip" }, el("bdi", {}, sequenceName(sequence))),
          el("b", {}, percent(share))),
        ...parts.map((part) => bar(sequence, part, widest)))));
  }

  function bar(sequence, { modality, share }, widest) {
    const fill = el("span", { class: `fill ${shadeOf(modality)}` });
    fill.style.width = `${(100 * Math.max(0, share)) / widest}%`;
    const button = el("button", { type: "button", class: "share", "aria-pressed": "false",
      title: "Show what this part looked at", click: () => choose(sequence, modality) },
    el("span", { class: "label" }, el("span", { class: "hidden" }, `${sequenceName(sequence)}, `),
      modalityName(modality)),
    el("span", { class: "track" }, fill), el("span", { class: "figure" }, percent(share)));
    button.dataset.branch = JSON.stringify([sequence, modality]);
    return button;
  }

  function choose(sequence, modality) {
    const again = chosen?.sequence === sequence && chosen?.modality === modality;
    chosen = again ? null : { sequence, modality };
    const branch = chosen && JSON.stringify([sequence, modality]);
    for (const button of panel.querySelectorAll(".share"))
      button.setAttribute("aria-pressed", button.dataset.branch === branch);
    on.branch(chosen);
  }

  /**
   * Shows what the model looked at.
   * @param {{item: object, parts: {hue: string, share: number}[]}[]} looks oldest first
   */
  function look(looks) {
    const sums = looks.map(({ item, parts }) => ({ item, share: parts.reduce((sum, part) => sum + part.share, 0) }));
    const strongest = sums.toSorted((a, b) => b.share - a.share).filter(({ share }) => share > 0).slice(0, LOOKED);
    const title = chosen
      ? `What ${sequenceName(chosen.sequence)}, ${modalityName(chosen.modality)}, looked at`
      : "What it looked at";
    if (!strongest.length) {
      looked.replaceChildren(el("h3", {}, title), el("p", { class: "soft" }, "Nothing: this part read no item."));
      return;
    }
    looked.replaceChildren(el("h3", {}, title), skyline(looks), el("ol", { class: "strongest" },
      ...strongest.map(({ item, share }) => el("li", {}, picture(item, hueOf(item.domain)),
        el("span", { class: "name", title: nameOf(item) }, named(item)), el("b", {}, percent(share))))));
  }

  /** Draws the whole history in miniature, a column per item. */
  function skyline(looks) {
    const highest = Math.max(...looks.map(({ parts }) => parts.reduce((sum, part) => sum + part.share, 0)));
    const board = draw("svg", { class: "skyline", viewBox: `0 0 ${looks.length * 4} 40`, preserveAspectRatio: "none",
      "aria-hidden": "true" });
    looks.forEach(({ parts }, place) => {
      let y = 40;
      board.append(draw("rect", { class: "ground", x: place * 4 + 0.5, y: 39, width: 3, height: 1 }));
      for (const { hue, share } of parts) {
        const height = (39 * share) / highest;
        y -= height;
        board.append(draw("rect", { class: `bit ${hue}`, x: place * 4 + 0.5, y, width: 3, height }));
      }
    });
    return el("div", { class: "overview" }, board, el("p", { class: "soft ends", "aria-hidden": "true" },
      el("span", {}, "oldest"), el("span", {}, "newest")));
  }

  /** Shows a line in place of what the model looked at. */
  function fail(line) {
    looked?.replaceChildren(line);
  }

  function hide() {
    panel.hidden = true;
    panel.replaceChildren();
    looked = null;
  }

  const pin = (pinned) => panel.classList.toggle("pinned", pinned);
  return { show, look, fail, hide, pin };
}
