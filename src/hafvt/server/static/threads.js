// Curves from a recommendation to the items of the history with the most attention.

import { byId, drawing } from "./dom.js";

const MAX_CURVES = 6;
const MIN_SHARE = 0.01; // of the score, for a curve; and half of the largest share
const END_DISTANCE = 9; // pixels between the ends of two curves
const BEND_HEIGHT = 64; // pixels below the history in which curves cross over

/**
 * Draws the curves in place of earlier ones.
 * @param {Element | undefined} card the recommendation; undefined draws nothing
 * @param {{tile: Element, color: string, share: number}[]} attended the items of the history
 */
export function drawThreads(card, attended = []) {
  const board = byId("threads");
  board.replaceChildren();
  if (!card) return;
  const origin = board.getBoundingClientRect();
  const strip = byId("timeline").parentElement.getBoundingClientRect();
  const end = card.getBoundingClientRect();
  const center = (box) => box.left + box.width / 2;
  const visible = attended
    .map((item) => ({ ...item, start: item.tile.getBoundingClientRect() }))
    .filter(({ start }) => center(start) > strip.left && center(start) < strip.right)
    .sort((a, b) => b.share - a.share);
  const minShare = Math.max(MIN_SHARE, (visible[0]?.share ?? 0) / 2);
  const strongest = visible.filter((item) => item.share >= minShare).slice(0, MAX_CURVES);
  strongest.sort((a, b) => a.start.left - b.start.left);
  for (const [index, { start, color, share }] of strongest.entries()) {
    const x1 = center(start) - origin.left;
    const y1 = start.bottom - origin.top;
    const x2 = center(end) - origin.left + END_DISTANCE * (index - (strongest.length - 1) / 2);
    const y2 = end.top - origin.top + 2;
    const bend = Math.min(BEND_HEIGHT, y2 - y1); // cross over below the history, then straight down
    const d = `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y1} ${x2} ${y1 + bend}V${y2}`;
    board.append(drawing("path", { class: `thread ${color}`, d, "stroke-width": 1.5 + 9 * share, pathLength: 1 }));
    board.append(drawing("circle", { class: `knot ${color}`, cx: x1, cy: y1, r: 3.5 }));
  }
}
