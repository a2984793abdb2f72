// Pictures for printing: image and difference, with the errors, of the first sections.
async function preparePrints() {
  const shown = PICTURES.slice(0, 4);
  const figures = [];
  for (const [at, each] of shown.entries()) {
    const layers = await decode(at);
    const figure = document.createElement("figure"), caption = document.createElement("figcaption"), pair = document.createElement("div");
    const legend = document.createElement("ul");
    legend.className = "legend";
    legend.append(...legendItems(colourEntries(each, "difference")));
    caption.append(`${each.name}, ${each.image ? "image" : "truth"} and difference: `, legend);
    for (const view of [each.image ? "image" : "truth", "difference"]) pair.append(await printed(paint(view, layers, each, { threshold: each.threshold }), view === "difference" ? each.marks : []));
    figure.append(pair, caption);
    figures.push(figure);
  }
  byId("prints").replaceChildren(...figures);
}

async function printed(painted, marks) {
  const canvas = new OffscreenCanvas(painted.width, painted.height), context = canvas.getContext("2d");
  context.drawImage(painted, 0, 0);
  const pane = Object.assign(Object.create(Pane.prototype), { camera: { scale: 1 }, place: (x, y) => [x, y] });
  marks.forEach((mark) => pane.drawMark(context, mark, false));
  const image = new Image();
  image.alt = "";
  image.src = URL.createObjectURL(await canvas.convertToBlob());
  await image.decode();
  return image;
}
