// The served model, and the names and colors of its parts on the page.

import { request } from "./api.js";

const NUM_COLORS = 6; // classes k0 to k5
const NUM_SHADES = 4; // classes m0 to m3
const MODALITY_NAMES = { id: "choices", image: "pictures", title: "titles" };
const MODALITY_REASONS = { id: "items that the same users choose", image: "pictures", title: "titles" };

export const model = { name: "", domains: [], sequences: [], modalities: [], can_explain: false, has_users: false };

/** Fetches the description of the served model into `model`. */
export async function loadModel() {
  Object.assign(model, await request("/model"));
}

const sequenceIndex = (sequence) => {
  const index = model.domains.findIndex((domain) => domain.name === sequence);
  return index < 0 ? model.domains.length : index; // the merged sequence comes after the domains
};

/** Returns the class of the color of a sequence: a domain, or all domains merged. */
export const colorClass = (sequence) => `k${sequenceIndex(sequence) % NUM_COLORS}`;

/** Returns the class of the shade of a modality. */
export const shadeClass = (modality) => `m${Math.max(0, model.modalities.indexOf(modality)) % NUM_SHADES}`;

/** Returns the name of a modality on the page. */
export const modalityName = (modality) => MODALITY_NAMES[modality] ?? modality;

const isDomain = (sequence) => model.domains.some((domain) => domain.name === sequence);

/** Returns the name of a sequence on the page. */
export const sequenceName = (sequence) => (isDomain(sequence) ? sequence : "all domains together");

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

/** Returns the branch with the largest share in words: [whose history of which domain, modality]. */
export function mainReason(shares, possessive) {
  const { sequence, parts } = largest(groupBySequence(shares));
  const history = isDomain(sequence) ? `${possessive} ${sequence} history` : `${possessive} whole history`;
  const { modality } = largest(parts);
  return [history, MODALITY_REASONS[modality] ?? modality];
}

export const formatPercent = (share) => `${share > 0 && share < 0.005 ? "< 1" : Math.round(100 * share)} %`;

export const formatNumber = (number) => number.toLocaleString("en");

export const formatCount = (number, singular) => `${formatNumber(number)} ${singular}${number === 1 ? "" : "s"}`;
