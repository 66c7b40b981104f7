// The explanation of a recommendation: shares of the score as bars, and attention to the items of the history.

import { byId, drawing, element, icon, itemName, itemPicture, nameElement } from "./dom.js";
import { colorClass, formatAttribute, formatNumber, formatPercent, groupBySequence, isLink, mainBranch,
  modalityName, phrases, shadeClass, sumOfShares } from "./model.js";

const MAX_LISTED = 3; // items listed by attention

/**
 * Makes the panel.
 * @param {object} handlers `close()`; `add(item)`; `hide(item)`: it is not to be recommended; `selectBranch({sequence, modality} | null)`: show the attention of
 *   one branch, or of all
 */
export function makeExplanation(handlers) {
  const panel = byId("explanation");
  let attentionPart = null; // the element that shows attention
  let selectedBranch = null;

  /** Shows the explanation of an item, without its attention. */
  function show(item, { rank, rankedBy, isPinned }) {
    const hadFocus = panel.contains(document.activeElement);
    selectedBranch = null;
    attentionPart = element("div", { class: "attention-part" });
    const { shares } = item;
    panel.replaceChildren(
      element("button", { type: "button", class: "close", "aria-label": "Close the explanation",
        click: handlers.close }, icon("close")),
      element("div", { class: "subject" }, itemPicture(item, colorClass(item.domain)), element("div", {},
        element("p", { class: "soft" }, `Number ${rank} in `, element("bdi", {}, item.domain)),
        element("h2", { id: "explanation-title", tabindex: "-1" }, nameElement(item)))),
      summary(item, rankedBy),
      ...facts(item),
      ...(shares ? [element("h3", {}, phrases.shares), bars(shares), attentionPart] : []),
      element("div", { class: "row" },
        element("button", { type: "button", class: "button", click: () => handlers.add(item) }, "Add to the history"),
        element("button", { type: "button", class: "button", click: () => handlers.hide(item) }, "Not this one")),
    );
    pin(isPinned);
    panel.hidden = false;
    if (hadFocus) byId("explanation-title").focus({ preventScroll: true });
  }

  function facts({ attributes }) {
    const entries = Object.entries(attributes);
    return entries.length ? [element("dl", { class: "columns" }, ...entries.flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", { dir: "auto" }, isLink(value)
        ? element("a", { href: value, target: "_blank", rel: "noopener noreferrer" }, value)
        : formatAttribute(value))]))] : [];
  }

  function summary(item, rankedBy) {
    if (!item.shares) {
      const text = rankedBy === "popularity"
        ? phrases.popular.replace("{count}", formatNumber(item.train_count))
        : phrases.no_explanation;
      return element("p", { class: "summary" }, text);
    }
    const [history, comparison] = mainBranch(item.shares);
    const because = item.reason
      ? [`${phrases.because} `, element("b", {}, nameElement(item.reason)), `, ${formatPercent(item.reason.share)}. `]
      : [];
    return element("p", { class: "summary" }, ...because, "Mostly ", element("b", {}, comparison), " in ",
      element("bdi", {}, history), ".");
  }

  function bars(shares) {
    const groups = groupBySequence(shares);
    const largest = Math.max(...groups.flatMap(({ parts }) => parts.map((part) => part.share)), 1e-9);
    return element("ul", { class: "shares" }, ...groups.map(({ sequence, parts, share }) =>
      element("li", { class: colorClass(sequence) },
        element("p", { class: "sequence" },
          element("span", { class: "chip" }, element("bdi", {}, sequence)),
          element("b", {}, formatPercent(share))),
        ...parts.map((part) => bar(sequence, part, largest)))));
  }

  function bar(sequence, { modality, share }, largest) {
    const fill = element("span", { class: `fill ${shadeClass(modality)}` });
    fill.style.width = `${(100 * Math.max(0, share)) / largest}%`;
    const button = element("button", { type: "button", class: "share", "aria-pressed": "false",
      title: "Show the items that mattered most for this part", click: () => selectBranch(sequence, modality) },
    element("span", { class: "label" }, element("span", { class: "hidden" }, `${sequence}, `),
      modalityName(modality)),
    element("span", { class: "track" }, fill), element("span", { class: "figure" }, formatPercent(share)));
    button.dataset.branch = JSON.stringify([sequence, modality]);
    return button;
  }

  function selectBranch(sequence, modality) {
    const isSelected = selectedBranch?.sequence === sequence && selectedBranch?.modality === modality;
    selectedBranch = isSelected ? null : { sequence, modality };
    const branch = selectedBranch && JSON.stringify([sequence, modality]);
    for (const button of panel.querySelectorAll(".share"))
      button.setAttribute("aria-pressed", button.dataset.branch === branch);
    handlers.selectBranch(selectedBranch);
  }

  /**
   * Shows the attention to the items of the history.
   * @param {{item: object, parts: {color: string, share: number}[]}[]} attended oldest first
   */
  function showAttention(attended) {
    const strongest = attended.map(({ item, parts }) => ({ item, share: sumOfShares(parts) }))
      .filter(({ share }) => share > 0).sort((a, b) => b.share - a.share).slice(0, MAX_LISTED);
    const title = element("h3", {}, selectedBranch
      ? `${phrases.important_items} for ${selectedBranch.sequence}, ${modalityName(selectedBranch.modality)}`
      : phrases.important_items);
    if (!strongest.length) {
      attentionPart.replaceChildren(title, element("p", { class: "soft" }, "None: this part has no item."));
      return;
    }
    attentionPart.replaceChildren(title, skyline(attended), element("ol", { class: "strongest" },
      ...strongest.map(({ item, share }) => element("li", {}, itemPicture(item, colorClass(item.domain)),
        element("span", { class: "name", title: itemName(item) }, nameElement(item)),
        element("b", {}, formatPercent(share))))));
  }

  /** Returns the attention to the whole history in miniature, one column for each item. */
  function skyline(attended) {
    const highest = Math.max(...attended.map(({ parts }) => sumOfShares(parts)));
    const board = drawing("svg", { class: "skyline", viewBox: `0 0 ${attended.length * 4} 40`,
      preserveAspectRatio: "none", "aria-hidden": "true" });
    attended.forEach(({ parts }, index) => {
      let y = 40;
      board.append(drawing("rect", { class: "ground", x: index * 4 + 0.5, y: 39, width: 3, height: 1 }));
      for (const { color, share } of parts) {
        const height = (39 * share) / highest;
        y -= height;
        board.append(drawing("rect", { class: `segment ${color}`, x: index * 4 + 0.5, y, width: 3, height }));
      }
    });
    return element("div", { class: "overview" }, board, element("p", { class: "soft ends", "aria-hidden": "true" },
      element("span", {}, "oldest"), element("span", {}, "newest")));
  }

  /** Shows an error in place of attention. */
  function showError(line) {
    attentionPart?.replaceChildren(line);
  }

  function hide() {
    panel.hidden = true;
    panel.replaceChildren();
    attentionPart = null;
  }

  const pin = (isPinned) => panel.classList.toggle("pinned", isPinned);
  return { show, showAttention, showError, hide, pin };
}
