// One connection for all tabs of a browser: HTTP/1.1 allows six to a host, and each tab would take one for good.
// It keeps the rows, so that a tab that comes later needs nothing from the server.
const ports = new Set();
let rows = null;
let live = false;
let source = null;

function tell(message) {
  for (const port of ports) port.postMessage(message);
}

function apply({ section, set, gone }) {
  const into = (rows[section] ??= {});
  for (const key of gone) delete into[key];
  Object.assign(into, set);
}

function open() {
  source = new EventSource("/api/feed");
  source.addEventListener("all", (event) => {
    rows = JSON.parse(event.data);
    live = true;
    tell({ kind: "all", rows });
  });
  source.addEventListener("change", (event) => {
    const change = JSON.parse(event.data);
    apply(change);
    tell({ kind: "change", change });
  });
  source.addEventListener("error", () => {
    live = false;
    tell({ kind: "lost" });
    if (source.readyState === 2) setTimeout(open, 1500); // refused: the browser would not try again
  });
}

self.onconnect = (event) => {
  const port = event.ports[0];
  ports.add(port);
  port.onmessage = (message) => {
    if (message.data === "bye") ports.delete(port);
  };
  if (rows) port.postMessage({ kind: "all", rows });
  if (!live && rows) port.postMessage({ kind: "lost" });
  if (!source) open();
};
