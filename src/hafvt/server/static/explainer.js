// Which recommendation is explained, and where its explanation shows: in the panel, above the history, and by curves.

import { latestOnly, request } from "./api.js";
import { announce, byId, errorLine, itemName } from "./dom.js";
import { makeExplanation } from "./explanation.js";
import { colorClass, model, sumOfShares } from "./model.js";
import { pathOf } from "./recommendations.js";
import { closeSheet, opensAsSheet, openSheet } from "./sheet.js";
import { drawThreads } from "./threads.js";

/**
 * Explains recommendations for a view, see app.js.
 * @param {object} handlers `add(item)`, `hide(item)`; `select(list, itemId, isPinned)`: marks the card; `saveState()`;
 *   `timeline`
 */
export function makeExplainer(view, handlers) {
  let explainedItem = null; // the recommendation whose explanation is shown
  let explainedList = null; // its list
  let isPinned = false; // whether the explanation stays when the pointer moves to another card
  let explanation = null; // the server's answer about explainedItem, null until it arrives
  let selectedBranch = null; // the branch whose attention is shown, null for all of them
  let addressedId = null; // the id of the item that the address wants explained
  const panel = makeExplanation({
    close,
    add: (item) => {
      close();
      handlers.add(item);
    },
    hide: (item) => {
      close();
      handlers.hide(item);
    },
    selectBranch: (branch) => {
      selectedBranch = branch;
      showAttention();
    },
  });

  function clearExplanation() {
    if (byId("sheet").contains(byId("explanation"))) closeSheet();
    explainedItem = explainedList = explanation = null;
    isPinned = false;
    panel.hide();
    showAttention();
  }

  /** Explains an item: at once by its shares, and by attention when the server has answered. */
  const explain = latestOnly(async (signal, item, list) => {
    if (explainedItem?.item_id !== item.item_id || explainedList !== list) explanation = null;
    explainedItem = item;
    explainedList = list;
    selectedBranch = null;
    handlers.select(list, item.item_id, isPinned);
    const { items, ranked_by } = list.answer;
    panel.show(item, { rank: 1 + items.indexOf(item), rankedBy: ranked_by, isPinned });
    handlers.saveState();
    if (!item.shares) {
      explanation = null;
      return showAttention();
    }
    try {
      const body = { history: view.history.map((entry) => entry.item.item_id), item: item.item_id, ...(view.target ? { time: view.target.time } : {}) };
      explanation = await request(pathOf("/explain", list.model), { body, signal });
    } catch (error) {
      if (signal.aborted) throw error;
      explanation = null;
      showAttention();
      return panel.showError(errorLine(error, () => explain(item, list)));
    }
    showAttention();
  });

  function preview(item, list) {
    if (isPinned || opensAsSheet("explanation") || (explainedItem === item && explainedList === list)) return updateThreads();
    explain(item, list);
  }

  function choose(item, list) {
    const isSheet = opensAsSheet("explanation");
    isPinned = isSheet || !(isPinned && explainedItem === item);
    explain(item, list);
    if (isPinned) announce(`Explanation of ${itemName(item)} opened`);
    if (isSheet) openExplanationSheet();
  }

  function openExplanationSheet() {
    openSheet(byId("explanation"), () => isPinned && close());
    byId("explanation-title").focus({ preventScroll: true });
  }

  function close() {
    const hasFocus = byId("explanation").contains(document.activeElement);
    isPinned = false;
    closeSheet();
    panel.pin(false);
    if (explainedItem) handlers.select(explainedList, explainedItem.item_id, false);
    if (hasFocus && explainedItem) explainedList.cards.cardOf(explainedItem.item_id)?.querySelector(".main").focus();
    handlers.saveState();
  }

  /** Returns the entries that the model read, each with its part of the score for each sequence. */
  function attendedEntries() {
    if (!explanation) return [];
    const entries = view.history.filter((entry) => !entry.item.is_unknown).slice(-explanation.history.length);
    return entries.map((entry, index) => ({ entry, item: entry.item, parts: model.sequences.map((sequence) => ({
      color: colorClass(sequence),
      share: model.modalities.reduce((sum, modality) => sum
        + (explanation.attention[sequence]?.[modality]?.[index] ?? 0) * branchWeight(sequence, modality), 0),
    })) }));
  }

  /** Returns the weight of a branch's attention: its share of the score; 1 or 0 if a branch is selected. */
  function branchWeight(sequence, modality) {
    if (selectedBranch) return Number(selectedBranch.sequence === sequence && selectedBranch.modality === modality);
    return explanation.shares[sequence]?.[modality] ?? 0;
  }

  function showAttention() {
    const attended = attendedEntries();
    handlers.timeline.showAttention(new Map(attended.map(({ entry, parts }) => [entry, parts])));
    if (explanation) panel.showAttention(attended);
    updateThreads();
  }

  function updateThreads() {
    const card = explainedItem && explanation && !opensAsSheet("explanation") 
      ? explainedList.cards.cardOf(explainedItem.item_id) : undefined;
    drawThreads(card, attendedEntries().map(({ entry, parts }) => ({
      tile: handlers.timeline.tileOf(entry),
      color: parts.reduce((best, part) => (part.share > best.share ? part : best)).color,
      share: sumOfShares(parts),
    })));
  }

  /** Explains the item of the address, the one that was explained before, or the first. */
  function shown(lists, isFailure) {
    if (isFailure) return;
    const wanted = addressedId ?? explainedItem?.item_id;
    const list = lists.find((one) => one === explainedList) ?? lists[0];
    const items = list.answer.items;
    const selected = items.find((item) => item.item_id === wanted);
    const isAddressed = Boolean(selected) && addressedId !== null;
    isPinned = Boolean(selected) && (isPinned || isAddressed);
    addressedId = null;
    if (!isPinned && byId("sheet").contains(byId("explanation"))) closeSheet();
    if (items.length) explain(selected ?? items[0], list);
    else clearExplanation();
    if (isAddressed && opensAsSheet("explanation")) openExplanationSheet();
  }

  return { preview, choose, close, shown, updateThreads, pinnedId: () => (isPinned && explainedItem ? explainedItem.item_id : null),
    setAddressed: (id) => (addressedId = id) };
}
