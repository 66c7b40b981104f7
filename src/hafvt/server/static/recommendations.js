// The recommendations: a list of cards for each chosen model and domain, with what the page says of each list.

import { latestOnly, request, retryDelay } from "./api.js";
import { makeCards } from "./cards.js";
import { byId, element, errorLine, nameElement } from "./dom.js";
import { describe, formatCount, formatNumber, model, phrases } from "./model.js";

/** Returns a path with the parameter that names a model; the first one needs none. */
export const pathOf = (path, modelName) =>
  (modelName === model.models[0] ? path : `${path}?${new URLSearchParams({ model: modelName })}`);

/**
 * Makes the lists.
 * @param {object} handlers those of `makeCards`, with the list as second argument; `shown(lists)`: all lists are shown,
 *   or the server has failed; `modelReplaced(signal)`: a newer model has answered; `showExcluded()`: excluded items may
 *   be listed again
 */
export function makeRecommendations(handlers) {
  const container = byId("lists");
  let lists = []; // {model, domain, section, cards, answer}
  let numFailures = 0; // since the last answer
  let retryTimer;

  function makeList(modelName, domain) {
    const list = { model: modelName, domain, answer: null };
    const bind = (handler) => (item) => handler(item, list);
    const grid = element("ol", { class: "cards" });
    list.heading = element("h3", { tabindex: "-1" });
    list.note = element("div", { class: "soft" });
    list.section = element("section", { class: "list" }, list.heading, list.note, grid);
    list.cards = makeCards(grid, { preview: bind(handlers.preview), choose: bind(handlers.choose), add: handlers.add,
      actionsFor: bind(handlers.actionsFor) });
    list.grid = grid;
    return list;
  }

  /** Makes a list for each model and domain of a view; keeps those that exist. */
  function arrange(view) {
    const models = view.models.length ? view.models : [model.models[0]];
    const domains = view.domain ? [view.domain] : model.domains.map(({ name }) => name);
    const wanted = domains.flatMap((domain) => models.map((name) => [name, domain]));
    const single = wanted.length === 1 && lists.length === 1 ? lists[0] : null; // its cards glide to the new ones
    const next = wanted.map(([name, domain]) => {
      const list = single ?? lists.find((old) => old.model === name && old.domain === domain) ?? makeList(name, domain);
      return Object.assign(list, { model: name, domain });
    });
    lists.filter((list) => !next.includes(list)).forEach((list) => list.section.remove());
    lists = next;
    lists.forEach((list, number) => {
      list.heading.id = `list-${number}`;
      list.heading.hidden = list.note.hidden = lists.length === 1;
      list.heading.replaceChildren(...[domains.length > 1 && list.domain, models.length > 1 && list.model].filter(Boolean)
        .flatMap((text, index) => [index ? ", " : "", element("bdi", {}, text)]));
      const isSingle = lists.length === 1; // a section without a name is no region of its own
      if (isSingle) list.section.removeAttribute("aria-labelledby");
      else list.section.setAttribute("aria-labelledby", list.heading.id);
      list.grid.setAttribute("aria-labelledby", isSingle ? "recommendations-title" : list.heading.id);
      if (container.children[number] !== list.section)
        container.insertBefore(list.section, container.children[number] ?? null);
    });
    container.style.setProperty("--columns", models.length);
  }

  /** Returns the body of the request for a list. */
  function bodyOf(list, view) {
    return {
      history: view.history.map((entry) => entry.item.item_id),
      domain: list.domain,
      k: view.k,
      include_shares: describe(list.model).can_explain,
      ...(view.excluded.length ? { exclude: view.excluded } : {}),
      ...(view.includeSeen ? { exclude_seen: false } : {}),
      ...(view.where ? { where: view.where } : {}),
      ...(view.diversity ? { diversity: view.diversity } : {}),
      ...(view.target ? { rank_of: view.target.item.item_id, time: view.target.time } : {}),
    };
  }

  const show = latestOnly(async (signal, view) => {
    clearTimeout(retryTimer);
    arrange(view);
    const answers = await Promise.allSettled(lists.map(async (list) => {
      list.cards.showBusy(view.k);
      const body = bodyOf(list, view);
      list.answer = await request(pathOf("/recommend", list.model), { body, signal });
      list.cards.show(list.answer.items, { targetId: view.target?.item.item_id, columns: view.columns });
      list.note.replaceChildren(...describeList(list, view));
    }));
    signal.throwIfAborted();
    const failed = answers.find(({ status }) => status === "rejected");
    if (failed) {
      for (const list of lists) list.cards.showStale();
      fail(failed.reason, view);
      return handlers.shown(lists, true);
    }
    numFailures = 0;
    if (lists.some((list) => list.answer.version !== describe(list.model).version)) return handlers.modelReplaced();
    byId("recommendations-note").replaceChildren(...(lists.length > 1 ? describeAll(view) : describeList(lists[0], view)),
      ...describeExcluded(view));
    handlers.shown(lists, false);
  });

  /** Shows an error above the old cards, and tries again later where that may help. */
  function fail(error, view) {
    const line = errorLine(error, () => show(view));
    const delay = retryDelay(error, numFailures++);
    if (delay !== null) {
      line.firstChild.append(" The page tries again by itself.");
      retryTimer = setTimeout(() => show(view), delay);
    }
    byId("recommendations-note").replaceChildren(line);
  }

  function describeList({ answer, domain, model: modelName }, view) {
    const { items, ranked_by, unknown_ids } = answer;
    const skipped = unknown_ids.length ? ` ${formatCount(unknown_ids.length, "id")} not in the catalog, skipped.` : "";
    if (!items.length) return [`There are no more items to recommend in ${domain}.`];
    const numRead = Math.min(view.history.length - unknown_ids.length, describe(modelName).max_length);
    const text = ranked_by === "model"
      ? `The ${items.length} best of ${domain} after ${formatCount(numRead, "item")}.`
      : `${view.history.length ? "The catalog has no item of the history" : "No history yet"}: the most popular items of ${domain}.`;
    return [text + skipped, ...describeTarget(answer, domain, view.target)];
  }

  function describeTarget({ rank }, domain, target) {
    if (target?.item.domain !== domain) return [];
    const name = element("b", {}, nameElement(target.item));
    if (rank === null) return [` ${phrases.chosen_next}: `, name, ", which the history contains, so it is not recommended."];
    const { num_items } = model.domains.find((one) => one.name === domain);
    return [` ${phrases.chosen_next}: `, name, `, here at rank ${formatNumber(rank)} of ${formatNumber(num_items)} items.`];
  }

  const describeAll = (view) => [`The ${view.k} best of each list after ${formatCount(view.history.length, "item")}.`];

  function describeExcluded({ excluded }) {
    if (!excluded.length) return [];
    return [` ${formatCount(excluded.length, "item")} hidden by you. `,
      element("button", { type: "button", class: "link", click: handlers.showExcluded }, "Show again")];
  }

  /** Marks the card of the explained item. */
  function select(selectedList, itemId, isPinned) {
    for (const list of lists) list.cards.select(list === selectedList ? itemId : null, isPinned);
  }

  return { show, select, bodyOf, lists: () => lists };
}
