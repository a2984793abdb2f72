// The viewer. Its state is the section, the view and the camera; everything else follows from them.
const PICTURES = JSON.parse(byId("data").textContent);
const VIEW_NAMES = { image: "Image", probability: "Probability", prediction: "Prediction", truth: "Truth", difference: "Difference" };
const PLURALS = { split: "splits", merge: "merges" };
const FOUR = "four";
const STEP = 1.4, LARGEST = 40;

const state = { at: 0, view: null, marked: null, threshold: null, camera: { scale: 1, x: 0, y: 0 }, fitted: true };
const decoded = new Map();
let panes = [];

const picture = () => PICTURES[state.at];
const decode = (at) => {
  if (!decoded.has(at)) decoded.set(at, decodePicture(PICTURES[at]));
  return decoded.get(at);
};

function viewsOf(shown) {
  const has = { image: shown.image, probability: shown.probability, prediction: true, truth: true, difference: true };
  return Object.keys(VIEW_NAMES).filter((view) => has[view]);
}

// Views side by side: of probability and prediction, only the one with more information.
const fourOf = (shown) => viewsOf(shown).filter((view) => view !== (shown.labels ? "probability" : shown.probability ? "prediction" : ""));

// ---- what is shown

function makePanes() {
  const views = state.view === FOUR ? fourOf(picture()) : [state.view];
  panes = views.map((view) => new Pane(view, VIEW_NAMES[view], state.camera));
  byId("panes").className = `panes ${views.length > 1 ? "four" : ""}`;
  byId("panes").replaceChildren(...panes.map((pane) => pane.element));
  panes.forEach(listen);
}

async function repaint() {
  const at = state.at;
  const layers = await decode(at);
  if (at !== state.at) return; // another section was chosen meanwhile
  const options = { threshold: state.threshold, truth: byId("show-truth").checked, prediction: byId("show-prediction").checked };
  for (const pane of panes) pane.painted = paint(pane.view, layers, picture(), options);
  if (state.fitted) fit(); else draw();
  byId("viewer").dataset.painted = `${picture().name} ${state.view}`;
}

// Errors of the kinds that are checked.
function shownMarks() {
  const wanted = new Set([...byId("kinds").querySelectorAll("input:checked")].map((box) => box.dataset.kind));
  return picture().marks.filter((mark) => wanted.has(mark.kind));
}

function draw() {
  const on = byId("show-marks").checked, marks = on ? shownMarks() : [];
  for (const pane of panes) {
    pane.draw(marks, on ? state.marked : null, state.fitted);
    pane.canvas.setAttribute("aria-label", `${VIEW_NAMES[pane.view]} of ${picture().name}, ${marks.length} errors marked`);
  }
  byId("scale").textContent = `${Math.round((100 * state.camera.scale) / picture().factor)} %`;
}

function show(at) {
  state.at = Math.max(0, Math.min(PICTURES.length - 1, at));
  state.marked = null;
  byId("choose").value = state.at;
  byId("previous").disabled = state.at === 0;
  byId("next").disabled = state.at === PICTURES.length - 1;
  listErrors();
  updateStatus();
  repaint();
}

function updateStatus() {
  const found = Object.entries(picture().found).map(([kind, number]) => `${number} ${PLURALS[kind] && number !== 1 ? PLURALS[kind] : kind}`).join(", ");
  const marked = picture().marks.length, all = Object.values(picture().found).reduce((a, b) => a + b, 0);
  const largest = marked < all ? ` (the largest ${marked} are marked)` : "";
  byId("status").textContent = `${picture().name} (${state.at + 1} of ${PICTURES.length}). Errors: ${found || "none"}${largest}`;
}

function choose(view) {
  state.view = view;
  makePanes();
  legend();
  repaint();
}

// ---- zoom and position

function smallest() {
  const [width, height] = panes[0].size();
  return Math.min(width / picture().width, height / picture().height);
}

function fit() {
  place(smallest(), picture().width / 2, picture().height / 2, true);
}

function place(scale, x, y, fitted = false) {
  const { camera } = state;
  camera.scale = Math.max(smallest() / 2, Math.min(LARGEST, scale));
  camera.x = Math.max(0, Math.min(picture().width, x));
  camera.y = Math.max(0, Math.min(picture().height, y));
  state.fitted = fitted;
  draw();
}

// Zooms by a factor; the point (x, y) stays in place on the screen.
function zoom(by, x = state.camera.x, y = state.camera.y) {
  const { scale, x: left, y: top } = state.camera;
  const larger = Math.max(smallest() / 2, Math.min(LARGEST, scale * by));
  place(larger, x - ((x - left) * scale) / larger, y - ((y - top) * scale) / larger);
}

const move = (right, down) => place(state.camera.scale, state.camera.x + right / state.camera.scale, state.camera.y + down / state.camera.scale);
