// Keyboard, touch and mouse input on a picture.
const KEYS = {
  ArrowLeft: () => show(state.at - 1), ArrowRight: () => show(state.at + 1),
  "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), "−": () => zoom(1 / STEP), 0: fit,
  e: () => nextError(1), E: () => nextError(-1), t: () => byId("show-truth").click(),
};
const MOVES = { ArrowLeft: [-60, 0], ArrowRight: [60, 0], ArrowUp: [0, -60], ArrowDown: [0, 60] };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const views = viewsOf(picture());
  if (event.shiftKey && MOVES[event.key]) move(...MOVES[event.key]);
  else if (KEYS[event.key]) KEYS[event.key]();
  else if (views[event.key - 1]) pick(views[event.key - 1]);
  else return;
  event.preventDefault();
}

function pick(view) {
  byId(`view-${view}`).checked = true;
  const focused = document.activeElement && document.activeElement.tagName === "CANVAS";
  choose(view);
  if (focused) panes[0].canvas.focus();
}

function listen(pane) {
  const { canvas } = pane;
  const fingers = new Map();
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...pane.under(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, ...pane.under(event)));
  canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, [event.clientX, event.clientY]); canvas.setPointerCapture(event.pointerId); pane.moved = false; });
  canvas.addEventListener("pointermove", (event) => { point(pane, event); if (fingers.has(event.pointerId)) drag(pane, fingers, event); });
  canvas.addEventListener("pointerup", (event) => { if (fingers.delete(event.pointerId) && !pane.moved) pickMark(pane, event); });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { byId("pointer").textContent = ""; });
}

function drag(pane, fingers, event) {
  const before = fingers.get(event.pointerId), now = [event.clientX, event.clientY];
  const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
  if (Math.hypot(now[0] - before[0], now[1] - before[1]) > 0) pane.moved = true;
  fingers.set(event.pointerId, now);
  if (others.length) zoom(Math.hypot(now[0] - others[0][0], now[1] - others[0][1]) / Math.max(1, Math.hypot(before[0] - others[0][0], before[1] - others[0][1])));
  else move(before[0] - now[0], before[1] - now[1]);
}

function pickMark(pane, event) {
  if (!byId("show-marks").checked) return;
  const [x, y] = pane.under(event);
  const away = (mark) => Math.hypot(mark.x + 0.5 - x, mark.y + 0.5 - y);
  const near = shownMarks().filter((mark) => away(mark) * state.camera.scale <= markRadius(mark, state.camera.scale, mark === state.marked));
  near.sort((a, b) => a.radius - b.radius || away(a) - away(b));
  if (near.length) mark(near[0]);
}

// Shows position, truth and prediction of the pixel under the pointer.
async function point(pane, event) {
  const layers = await decode(state.at);
  const [x, y] = pane.under(event).map(Math.floor);
  const { factor, corner } = picture(), [top, left] = corner || [0, 0];
  if (x < 0 || y < 0 || x >= layers.width || y >= layers.height) { byId("pointer").textContent = ""; return; }
  const i = y * layers.width + x;
  const truth = picture().truth_kind === "mask" ? (layers.truth[i] ? "foreground" : "background") : layers.truth[i];
  const parts = [`y ${top + y * factor}, x ${left + x * factor}`, `truth: ${truth}`];
  if (layers.labels || layers.classes) parts.push(`prediction: ${(layers.labels || layers.classes)[i]}`);
  if (layers.probability) parts.push(`probability: ${(layers.probability[i] / 255).toFixed(2)}`);
  byId("pointer").textContent = parts.join(" · ");
}
