// Curves from a recommendation to the items of the history that speak for it.

import { byId, draw } from "./dom.js";

const MOST = 6; // curves
const LEAST = 0.01; // of the score, for a curve; half of the strongest too
const GAP = 9; // pixels between the ends of two
const FALL = 64; // pixels in which a curve finds its way to its card

/**
 * Draws the curves.
 * @param {Element | undefined} card that they start from; none draws nothing
 * @param {{tile: Element, hue: string, share: number}[]} looks
 */
export function thread(card, looks = []) {
  const board = byId("threads");
  board.replaceChildren();
  if (!card) return;
  const origin = board.getBoundingClientRect();
  const strip = byId("timeline").parentElement.getBoundingClientRect();
  const end = card.getBoundingClientRect();
  const inSight = looks
    .map((look) => ({ ...look, start: look.tile.getBoundingClientRect() }))
    .filter(({ start }) => start.left + start.width / 2 > strip.left && start.left + start.width / 2 < strip.right)
    .sort((a, b) => b.share - a.share);
  const least = Math.max(LEAST, (inSight[0]?.share ?? 0) / 2);
  const strongest = inSight.filter((look) => look.share >= least).slice(0, MOST);
  strongest.sort((a, b) => a.start.left - b.start.left);
  for (const [place, { start, hue, share }] of strongest.entries()) {
    const x1 = start.left + start.width / 2 - origin.left;
    const y1 = start.bottom - origin.top;
    const x2 = end.left + end.width / 2 - origin.left + GAP * (place - (strongest.length - 1) / 2);
    const y2 = end.top - origin.top + 2;
    const bend = Math.min(FALL, y2 - y1); // they cross over in the gap below the history, then go straight down
    const d = `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y1} ${x2} ${y1 + bend}V${y2}`;
    board.append(draw("path", { class: `thread ${hue}`, d, "stroke-width": 1.5 + 9 * share, pathLength: 1 }));
    board.append(draw("circle", { class: `knot ${hue}`, cx: x1, cy: y1, r: 3.5 }));
  }
}
