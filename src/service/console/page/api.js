// The way to /console/api. Every failure is one kind of error, with a text for a person.

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const signedOut = new EventTarget();

async function request(method, path, options = {}) {
  const url = new URL("/console/api/" + path.map(encodeURIComponent).join("/"), location.origin);
  for (const [name, value] of Object.entries(options.query ?? {})) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  // The hub decodes percent signs alone.
  url.search = url.search.replaceAll("+", "%20");
  const headers = { ...options.headers };
  if (method !== "GET") headers["X-Forebay-Console"] = "1";
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { method, headers, body: options.body, signal: options.signal, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null, "The hub does not answer. It may be stopped, or on its way up.");
  }
  if (response.status === 204) return null;
  let document;
  try {
    document = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(response.status, null, "The answer cannot be read.");
  }
  if (!response.ok) {
    const { code, message } = document.error ?? {};
    const error = new ApiError(response.status, code ?? null, message ?? "The hub refused.");
    if (response.status === 401 && code === "NotSignedIn") signedOut.dispatchEvent(new Event("change"));
    throw error;
  }
  return document;
}

export function get(path, query, signal) {
  return request("GET", path, { query, signal });
}

// `body` is an object, or JSON text that goes as it is.
export function send(method, path, body, { etag, query } = {}) {
  const headers = etag ? { "If-Match": `"${etag}"` } : {};
  const text = body === undefined || typeof body === "string" ? body : JSON.stringify(body);
  return request(method, path, { body: text, headers, query });
}
