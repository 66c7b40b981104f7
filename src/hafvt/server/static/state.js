// The state of the page in the fragment of its address: a link or a reload shows the same state, and each change
// is an entry of the browser's history, so that Back undoes it.

const MAX_ITEMS = 1000; // of a history
const MAX_ID_LENGTH = 256; // characters

/** Returns the state in the address, as `writeState` has written it; what is missing has its default. */
export function readState() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const k = Number(parameters.get("k"));
  const ids = (name) => parameters.getAll(name).filter((id) => id.length <= MAX_ID_LENGTH).slice(-MAX_ITEMS);
  return {
    userId: parameters.get("user"),
    itemIds: ids("item"),
    domain: parameters.get("domain"),
    k: Number.isInteger(k) && k >= 1 && k <= 100 ? k : 10,
    explainedId: parameters.get("explain"),
    models: parameters.getAll("model"),
    excluded: ids("without"),
    includeSeen: parameters.get("seen") === "1",
    where: parameters.get("where") ?? "",
    diversity: Math.min(1, Math.max(0, Number(parameters.get("diversity")) || 0)),
    columns: parameters.getAll("column"),
    targetIndex: parameters.has("target") ? Number(parameters.get("target")) : null,
  };
}

/** Writes the state to the address, as a new entry of the browser's history if `isChange`. */
export function writeState(state, isChange = false) {
  const { userId, itemIds, domain, k, explainedId } = state;
  const parameters = new URLSearchParams();
  if (userId !== null) parameters.set("user", userId);
  else for (const id of itemIds.slice(-MAX_ITEMS)) parameters.append("item", id);
  parameters.set("domain", domain);
  parameters.set("k", k);
  for (const name of state.models) parameters.append("model", name);
  for (const id of state.excluded) parameters.append("without", id);
  if (state.includeSeen) parameters.set("seen", "1");
  if (state.where) parameters.set("where", state.where);
  if (state.diversity) parameters.set("diversity", state.diversity);
  for (const name of state.columns) parameters.append("column", name);
  if (state.targetIndex !== null) parameters.set("target", state.targetIndex);
  if (explainedId) parameters.set("explain", explainedId);
  const fragment = `#${parameters}`;
  if (fragment === location.hash) return;
  const depth = window.history.state?.depth ?? 0;
  if (isChange) window.history.pushState({ depth: depth + 1 }, "", fragment);
  else window.history.replaceState({ depth }, "", fragment);
}

/** Undoes the last change of this page, if there is one. */
export function undo() {
  if (window.history.state?.depth > 0) window.history.back();
}
