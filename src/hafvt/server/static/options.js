// Less common choices about the recommendations, and ways to take them elsewhere.

import { apiKey } from "./api.js";
import { byId, element, icon, itemName } from "./dom.js";
import { model } from "./model.js";
import { pathOf } from "./recommendations.js";
import { showToast } from "./toast.js";

const FORMULA = /^[=+\-@\t\r＝＋－＠]/u; // how a cell begins that a spreadsheet may run

/** Fills the menu of options. `handlers.change(part)`: a part of the view is changed; `lists()`, `bodyOf(list)`. */
export function makeOptions(view, handlers) {
  const menu = byId("options");
  byId("open-options").prepend(icon("more"));
  menu.addEventListener("beforetoggle", (event) => {
    if (event.newState === "open") fill();
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    const box = byId("open-options").getBoundingClientRect();
    menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${box.bottom + 6 + scrollY}px`;
  });

  function fill() {
    const check = (label, isChecked, change) => element("label", {},
      element("input", { type: "checkbox", checked: isChecked, change: (event) => change(event.target.checked) }), label);
    const act = (label, name, run) => element("button", { type: "button", click: () => {
      menu.hidePopover();
      run();
    } }, icon(name), label);
    const columns = model.attributes.map((name) => check(name, view.columns.includes(name), (isChecked) =>
      handlers.change({ columns: isChecked ? [...view.columns, name] : view.columns.filter((other) => other !== name) })));
    menu.replaceChildren(
      check("Include items of the history", view.includeSeen, (includeSeen) => handlers.change({ includeSeen })),
      ...(model.policies ? rules() : []), // a server that knows rules names its policies
      ...(columns.length ? [element("h3", {}, "On the cards"), ...columns] : []),
      element("hr"),
      act("Save as CSV", "open", saveCsv),
      act("Copy as curl", "link", copyCurl));
  }

  /** Returns the fields for a condition on items and for diversity. */
  function rules() {
    const where = element("input", { type: "text", id: "where", value: view.where, placeholder: "price < 20", maxlength: 2000,
      spellcheck: "false", autocomplete: "off", change: () => handlers.change({ where: where.value.trim() }) });
    const diversity = element("input", { type: "range", id: "diversity", min: 0, max: 1, step: 0.1, value: view.diversity,
      change: () => handlers.change({ diversity: Number(diversity.value) }) });
    return [element("label", { class: "field" }, "Only items where", where),
      element("label", { class: "field" }, "Diversity", diversity)];
  }

  /** Saves all lists in one CSV file. */
  function saveCsv() {
    const rows = handlers.lists().flatMap((list) => list.answer?.items.map((item, index) => [list.answer.model, item.domain,
      index + 1, item.item_id, item.title ?? "", item.score, item.reason ? itemName(item.reason) : "",
      ...model.attributes.map((name) => item.attributes[name] ?? "")]) ?? []);
    const header = ["model", "domain", "rank", "item_id", "title", "score", "because_of", ...model.attributes];
    const cell = (value) => {
      const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const text = [header, ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
    const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })); // the mark that Excel wants
    element("a", { href: url, download: "recommendations.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  /** Copies the requests of all lists as commands. */
  async function copyCurl() {
    const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
    const key = apiKey() ? ` -H "X-API-Key: $HAFVT_API_KEY"` : "";
    const commands = handlers.lists().map((list) => `curl -s ${quote(location.origin + pathOf("/recommend", list.model))}`
      + ` -H 'Content-Type: application/json'${key} -d ${quote(JSON.stringify(handlers.bodyOf(list)))}`);
    try {
      await navigator.clipboard.writeText(`${commands.join("\n")}\n`);
      showToast("Copied");
    } catch {
      showToast("The browser does not let this page copy: open it by https or at localhost.");
    }
  }
}
