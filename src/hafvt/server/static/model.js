// What the served model is, and how the page names and colors its parts.

import { ask } from "./api.js";

const HUES = 6; // classes k0 to k5
const SHADES = 4; // classes m0 to m3
const PLAIN = { id: "choices", image: "pictures", title: "titles" };
const SPOKEN = { id: "what people choose together", image: "pictures", title: "titles" };

export const model = { name: "", domains: [], sequences: [], modalities: [], can_explain: false, has_users: false };

/** Asks the server what it serves. */
export async function meet() {
  Object.assign(model, await ask("/model"));
}

const numberOf = (sequence) => {
  const number = model.domains.findIndex((domain) => domain.name === sequence);
  return number < 0 ? model.domains.length : number; // all domains together come after them
};

/** Returns the class of the color of a domain, or of the sequence of all of them. */
export const hueOf = (sequence) => `k${numberOf(sequence) % HUES}`;

/** Returns the class of the shade of a modality. */
export const shadeOf = (modality) => `m${Math.max(0, model.modalities.indexOf(modality)) % SHADES}`;

/** Returns what people call a modality. */
export const modalityName = (modality) => PLAIN[modality] ?? modality;

const isDomain = (sequence) => model.domains.some((domain) => domain.name === sequence);

/** Returns what people call the history of a sequence. */
export const sequenceName = (sequence) => (isDomain(sequence) ? sequence : "everything together");

/** Returns the shares (sequence -> modality -> share) in the model's order, with the sum of each sequence. */
export function bySequence(shares) {
  return model.sequences.map((sequence) => {
    const parts = model.modalities.map((modality) => ({
      modality,
      share: shares[sequence]?.[modality] ?? 0,
    }));
    return { sequence, parts, share: parts.reduce((sum, part) => sum + part.share, 0) };
  });
}

const most = (all) => all.reduce((best, one) => (one.share > best.share ? one : best));

/** Returns where most of a score comes from, in words: [whose and which history, what its items are known by]. */
export function reason(shares, whose) {
  const best = most(bySequence(shares));
  const history = isDomain(best.sequence) ? `${whose} ${best.sequence} history` : `${whose} whole history`;
  const { modality } = most(best.parts);
  return [history, SPOKEN[modality] ?? modality];
}

export const percent = (share) => `${share > 0 && share < 0.005 ? "< 1" : Math.round(100 * share)} %`;

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
