// Asking the server: one place for keys, time limits, errors, and answers that come too late.

const PATIENCE = 20_000; // milliseconds

/** What went wrong, in words for people. */
export class Problem extends Error {}

/** The API key of this tab, where the server wants one. */
export const key = () => sessionStorage.getItem("key");

/** Returns a picture as a drawing: for servers that want a key, which an <img> cannot send. */
export async function drawn(path) {
  const answer = await fetch(path, { headers: { "X-API-Key": key() } });
  if (!answer.ok) throw new Problem(`no picture: ${answer.status}`);
  const bitmap = await createImageBitmap(await answer.blob());
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

/**
 * Returns the answer to a GET, or to a POST where there is a body.
 * @throws {Problem} the server refuses, fails, or does not answer
 */
export async function ask(path, { body, signal } = {}) {
  const headers = { Accept: "application/json" };
  const sent = key();
  if (sent) headers["X-API-Key"] = sent;
  if (body) headers["Content-Type"] = "application/json";
  const limit = AbortSignal.timeout(PATIENCE);
  let answer, told;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    told = await answer.json().catch(() => null);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(limit.aborted ? "The server takes too long to answer." : "The server does not answer.");
  }
  signal?.throwIfAborted();
  if (answer.status === 401) {
    await askForKey(sent);
    return ask(path, { body, signal });
  }
  if (answer.ok && told !== null && typeof told === "object") return told;
  const problem = new Problem(
    answer.status === 429 ? "The server is busy." : sentence(told?.error) ?? `The server answers ${answer.status}.`,
  );
  problem.status = answer.status;
  throw problem;
}

/** Wraps work(signal, ...) such that each call stops the one before: only the latest answer counts. */
export function latest(work) {
  let current;
  return async (...rest) => {
    current?.abort();
    const mine = (current = new AbortController());
    try {
      return await work(mine.signal, ...rest);
    } catch (error) {
      if (!mine.signal.aborted) throw error; // else somebody asked anew, and nobody waits for this
    }
  };
}

/** Waits until nobody has called for some milliseconds. */
export function calm(milliseconds, work) {
  let timer;
  return (...rest) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...rest), milliseconds);
  };
}

function sentence(text) {
  if (typeof text !== "string" || !text) return null;
  const short = text.length > 200 ? `${text.slice(0, 200)}…` : text;
  return `${short[0].toUpperCase()}${short.slice(1)}${/[.!?…]$/.test(short) ? "" : "."}`;
}

let asking = null;

/** Asks for the API key, once for all requests that wait for it. */
function askForKey(refused) {
  if (key() && key() !== refused) return Promise.resolve(); // given while this request was under way
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key");
    const value = document.getElementById("key-value");
    document.getElementById("key-about").textContent = refused
      ? "That key was refused. Try another one."
      : "It is kept until this tab is closed.";
    dialog.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("key", value.value.trim());
      value.value = "";
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    dialog.onclose = () => reject(new Problem("The server wants an API key."));
    document.getElementById("key-cancel").onclick = () => dialog.close();
    dialog.showModal();
  }).finally(() => {
    asking = null;
  });
  return asking;
}
