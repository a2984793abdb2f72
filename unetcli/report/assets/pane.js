// A canvas that shows a painted picture at the zoom and position of the viewer, with marks on top.
class Pane {
  constructor(view, name, camera) {
    this.view = view;
    this.camera = camera;
    this.element = document.createElement("div");
    this.element.className = "pane";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.label = document.createElement("span");
    this.label.textContent = name;
    this.element.append(this.canvas, this.label);
    this.painted = null;
  }

  size() { return [this.canvas.clientWidth, this.canvas.clientHeight]; }

  // Position on the canvas, in CSS pixels, of a position in the picture.
  place(x, y) {
    const [width, height] = this.size();
    const { scale, x: left, y: top } = this.camera;
    return [width / 2 + (x - left) * scale, height / 2 + (y - top) * scale];
  }

  // Position in the picture under a pointer event.
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const { scale, x, y } = this.camera;
    return [x + (event.clientX - box.left - box.width / 2) / scale, y + (event.clientY - box.top - box.height / 2) / scale];
  }

  draw(marks, chosen, fitted) {
    const [width, height] = this.size();
    const density = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * density));
    this.canvas.height = Math.max(1, Math.round(height * density));
    const context = this.canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    if (this.painted) {
      const [x, y] = this.place(0, 0);
      context.imageSmoothingEnabled = this.camera.scale * density < 2;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.painted, x, y, this.painted.width * this.camera.scale, this.painted.height * this.camera.scale);
    }
    this.canvas.classList.toggle("fitted", fitted);
    const crowded = marks.length > 40 && fitted;
    marks.forEach((mark) => { if (mark !== chosen) this.drawMark(context, mark, false, crowded); });
    if (chosen) this.drawMark(context, chosen, true);
  }

  // Draws a mark; crowded ones are small and without a letter until the user zooms in.
  drawMark(context, mark, chosen, crowded = false) {
    const { letter, colour, shape } = MARKS[mark.kind];
    const [x, y] = this.place(mark.x + 0.5, mark.y + 0.5);
    const radius = crowded ? 4 : markRadius(mark, this.camera.scale, chosen);
    for (const [stroke, width] of [["#000", chosen ? 6.5 : 3.5], [colour, chosen ? 3.5 : 1.8]]) {
      context.beginPath();
      if (shape === "circle") context.arc(x, y, radius, 0, 7);
      else context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.stroke();
    }
    if (crowded) return;
    context.font = "bold 12px sans-serif";
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(letter, x + radius + 2, y - radius + 4);
    context.fillStyle = colour;
    context.fillText(letter, x + radius + 2, y - radius + 4);
  }
}

// Radius of a mark on the canvas. It is small unless chosen, so that the frames of large cells do not overlap.
const markRadius = (mark, scale, chosen) => Math.max(7, Math.min((mark.radius + 3) * scale, chosen ? Infinity : 14));
