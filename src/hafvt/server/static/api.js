// Requests to the server: the API key, time limits, errors, and answers that arrive too late.

const TIMEOUT_MS = 20_000;

/** A request that failed. Its message is a sentence for people; `status` is set if the server answered. */
export class RequestError extends Error {}

/** Returns the API key of this tab, null where there is none. */
export const apiKey = () => sessionStorage.getItem("key");

/** Returns a picture on a canvas: an <img> cannot send the API key that the server needs. */
export async function fetchPicture(path) {
  const response = await fetch(path, { headers: { "X-API-Key": apiKey() } });
  if (!response.ok) throw new RequestError(`no picture: ${response.status}`);
  const bitmap = await createImageBitmap(await response.blob());
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas;
}

/**
 * Returns the JSON that answers a GET, or a POST if there is a body. Prompts for the API key if the server needs it.
 * @throws {RequestError} the server refuses, fails, or does not answer
 */
export async function request(path, { body, signal } = {}) {
  const headers = { Accept: "application/json" };
  const sentKey = apiKey();
  if (sentKey) headers["X-API-Key"] = sentKey;
  if (body) headers["Content-Type"] = "application/json";
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  let response, content;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    content = await response.json().catch(() => null);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new RequestError(timeout.aborted ? "The server takes too long to answer." : "The server does not answer.");
  }
  signal?.throwIfAborted();
  if (response.status === 401) {
    await promptForKey(sentKey);
    return request(path, { body, signal });
  }
  if (response.ok && content !== null && typeof content === "object") return content;
  const error = new RequestError(
    response.status === 429 ? "The server is busy."
      : toSentence(content?.error) ?? `The server answers with status ${response.status}.`,
  );
  error.status = response.status;
  error.retryAfter = Number(response.headers.get("Retry-After")) || null; // seconds
  throw error;
}

/** Returns the milliseconds after which to repeat a request that failed some times; null if it would fail again. */
export function retryDelay(error, numFailures) {
  if (error.status && error.status !== 429 && error.status < 500) return null;
  return 1000 * Math.min(30, error.retryAfter ?? 2 ** numFailures);
}

/** Wraps task(signal, ...) such that each call aborts the previous one: only the latest call has an effect. */
export function latestOnly(task) {
  let current;
  return async (...args) => {
    current?.abort();
    const controller = (current = new AbortController());
    try {
      return await task(controller.signal, ...args);
    } catch (error) {
      if (!controller.signal.aborted) throw error; // an aborted call has no effect, its error neither
    }
  };
}

/** Wraps a task such that it runs once there has been no further call for some milliseconds. */
export function debounce(milliseconds, task) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => task(...args), milliseconds);
  };
}

function toSentence(text) {
  if (typeof text !== "string" || !text) return null;
  const short = text.length > 200 ? `${text.slice(0, 200)}…` : text;
  return `${short[0].toUpperCase()}${short.slice(1)}${/[.!?…]$/.test(short) ? "" : "."}`;
}

let openPrompt = null;

/** Prompts for the API key, once for all requests that need it. */
function promptForKey(refusedKey) {
  if (apiKey() && apiKey() !== refusedKey) return Promise.resolve(); // entered since the request was sent
  openPrompt ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-value");
    document.getElementById("key-note").textContent = refusedKey
      ? "The server refused that key. Try another one."
      : "The key is kept until this tab is closed.";
    dialog.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("key", input.value.trim());
      input.value = "";
      dialog.onclose = null;
      dialog.close();
      resolve();
    };
    dialog.onclose = () => reject(Object.assign(new RequestError("The server needs an API key."), { status: 401 }));
    document.getElementById("key-cancel").onclick = () => dialog.close();
    dialog.showModal();
  }).finally(() => {
    openPrompt = null;
  });
  return openPrompt;
}
