// The served model, and the names and colors of its parts on the page.

import { request } from "./api.js";

const NUM_COLORS = 6; // classes k0 to k5
const NUM_SHADES = 4; // classes m0 to m3
const words = JSON.parse(document.getElementById("words").textContent); // hafvt/words.py

/** What the page says, by name, in the words that the report uses too. */
export const phrases = words.phrases;

/** The first served model. */
export const model = { name: "", models: [], domains: [], sequences: [], modalities: [], attributes: [], has_users: false };
const descriptions = new Map(); // name -> description

/** Fetches the descriptions of all served models. */
export async function loadModels() {
  const first = await request("/model");
  const names = first.models.slice(1);
  const others = await Promise.all(names.map((name) => request(`/model?${new URLSearchParams({ model: name })}`)));
  [first, ...others].forEach((description, index) => descriptions.set(first.models[index], description));
  const explaining = [first, ...others].find((one) => one.can_explain) ?? first; // its parts have colors and shades
  Object.assign(model, first, { sequences: explaining.sequences, modalities: explaining.modalities });
}

/** Returns the description of a served model. */
export const describe = (name) => descriptions.get(name) ?? model;

const sequenceIndex = (sequence) => {
  const index = model.domains.findIndex((domain) => domain.name === sequence);
  return index < 0 ? model.domains.length : index; // the merged sequence comes after the domains
};

/** Returns the class of the color of a sequence: a domain, or all domains merged. */
export const colorClass = (sequence) => `k${sequenceIndex(sequence) % NUM_COLORS}`;

/** Returns the class of the shade of a modality. */
export const shadeClass = (modality) => `m${Math.max(0, model.modalities.indexOf(modality)) % NUM_SHADES}`;

/** Returns the name of a modality on the page. */
export const modalityName = (modality) => words.modalities[modality] ?? modality;

const isDomain = (sequence) => model.domains.some((domain) => domain.name === sequence);

/** Returns [{sequence, parts: [{modality, share}], share}] of shares (sequence -> modality -> share), in model order. */
export function groupBySequence(shares) {
  return model.sequences.map((sequence) => {
    const parts = model.modalities.map((modality) => ({
      modality,
      share: shares[sequence]?.[modality] ?? 0,
    }));
    return { sequence, parts, share: sumOfShares(parts) };
  });
}

export const sumOfShares = (parts) => parts.reduce((sum, part) => sum + part.share, 0);

const largest = (parts) => parts.reduce((best, part) => (part.share > best.share ? part : best));

/** Returns the branch with the largest share in words: [history of which domain, what is compared]. */
export function mainBranch(shares) {
  const { sequence, parts } = largest(groupBySequence(shares));
  const { modality } = largest(parts);
  return [isDomain(sequence) ? `the ${sequence} history` : "the whole history", words.reasons[modality] ?? modality];
}

export const formatPercent = (share) => `${share > 0 && share < 0.005 ? "< 1" : Math.round(100 * share)} %`;

/** Returns the value of a column of the items table as text; "" for none. */
export function formatAttribute(value) {
  if (value === undefined || value === null) return "";
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" ? formatNumber(value) : String(value);
}

export const isLink = (value) => typeof value === "string" && /^https?:\/\/\S+$/.test(value);

export const formatNumber = (number) => number.toLocaleString("en");

export const formatCount = (number, singular) => `${formatNumber(number)} ${singular}${number === 1 ? "" : "s"}`;
