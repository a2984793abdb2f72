// Everything around the pictures: legend, threshold, links from the tables; and the start of the viewer.
function legend() {
  const entries = colourEntries(picture(), state.view);
  if (byId("show-truth").checked) entries.push(["outlines of the truth", COLOURS.truth]);
  if (byId("show-prediction").checked) entries.push(["outlines of the prediction", COLOURS.prediction]);
  byId("legend").replaceChildren(...legendItems(entries));
}

const legendItems = (entries) => entries.map(([name, colour]) => {
  const item = document.createElement("li"), swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = rgb(colour);
  item.append(swatch, name);
  return item;
});

// Name and colour of each entry in the legend of a view.
function colourEntries({ truth_kind: kind, membrane, labels, outputs }, view) {
  if (kind === "classes" && view !== "image") {
    const wrong = "wrongly predicted as class", name = view === "difference" ? wrong : "class";
    const classes = Array.from({ length: outputs }, (_, number) => [`${name} ${number}`, classColour(number)]);
    const first = [`${wrong} 0`, COLOURS.background];
    return view === "difference" ? [first, ...classes.slice(1)] : view === FOUR ? [first, ...classes] : classes;
  }
  if (view !== "difference" && view !== FOUR) return [];
  if (membrane && kind === "mask") return [["interior predicted as membrane", COLOURS.missed], ["membrane predicted as interior", COLOURS.extra]];
  const cells = labels && kind === "labels" ? [["another cell: split or merged", COLOURS.confused]] : [];
  return [["missed: only in the truth", COLOURS.missed], ["extra: only in the prediction", COLOURS.extra], ...cells];
}

function viewButton(view, name) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "view", id: `view-${view}`, value: view });
  input.checked = view === state.view;
  input.addEventListener("change", () => choose(view));
  label.append(input, name);
  return label;
}

function startThreshold() {
  const slider = byId("threshold"), output = byId("threshold-value");
  byId("threshold-group").hidden = !picture().probability || picture().labels !== null;
  state.threshold = picture().threshold;
  slider.value = state.threshold;
  const update = () => { output.textContent = `${state.threshold.toFixed(2)}${Math.abs(state.threshold - picture().threshold) < 0.005 ? " (the threshold of the marked errors)" : ""}`; };
  slider.addEventListener("input", () => { state.threshold = Number(slider.value); update(); repaint(); });
  update();
}

// Shows the section of a button in a table, and the cell if the button has one.
function follow(button) {
  const at = PICTURES.findIndex((shown) => shown.section === Number(button.dataset.section));
  show(at);
  byId("viewer").scrollIntoView({ behavior: "instant" });
  panes[0].canvas.focus({ preventScroll: true });
  if (button.dataset.y === undefined) return;
  const { factor } = picture();
  const [y, x, radius] = [button.dataset.y, button.dataset.x, button.dataset.radius].map((value) => Number(value) / factor);
  const mark = picture().marks.find((each) => Math.hypot(each.x - x, each.y - y) < 1);
  goTo(mark || { kind: "selected", y, x, radius });
}

function start() {
  if (!PICTURES.length) return;
  byId("viewer").hidden = false;
  const views = viewsOf(picture());
  state.view = picture().image ? "image" : "difference";
  byId("views").append(...views.map((view) => viewButton(view, VIEW_NAMES[view])), viewButton(FOUR, "Side by side"));
  startThreshold();
  byId("choose").addEventListener("change", (event) => show(Number(event.target.value)));
  byId("previous").addEventListener("click", () => show(state.at - 1));
  byId("next").addEventListener("click", () => show(state.at + 1));
  byId("zoom-in").addEventListener("click", () => zoom(STEP));
  byId("zoom-out").addEventListener("click", () => zoom(1 / STEP));
  byId("fit").addEventListener("click", fit);
  byId("show-marks").addEventListener("change", draw);
  byId("kinds").addEventListener("change", () => { listErrors(); draw(); });
  for (const id of ["show-truth", "show-prediction"]) byId(id).addEventListener("change", () => { legend(); repaint(); });
  for (const button of document.querySelectorAll("button.link[data-section]")) button.addEventListener("click", () => follow(button));
  addEventListener("resize", () => (state.fitted ? fit() : draw()));
  choose(state.view);
  show(0);
  setTimeout(preparePrints, 1500);
}

start();
