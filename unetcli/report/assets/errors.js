// The list of errors, and moving to one of them.
function listErrors() {
  const items = shownMarks().map((mark) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const sign = document.createElement("span");
    button.type = "button";
    sign.className = `sign ${mark.kind}`;
    sign.textContent = MARKS[mark.kind].letter;
    sign.setAttribute("aria-hidden", "true");
    button.append(sign, `${mark.kind}: ${mark.text}`);
    button.addEventListener("click", () => { goTo(mark); byId("panes").scrollIntoView({ block: "nearest", behavior: "instant" }); });
    item.append(button);
    button.mark = mark;
    return item;
  });
  byId("errors").replaceChildren(...items);
}

function goTo(error) {
  mark(error);
  place(closeUp(error.radius), error.x + 0.5, error.y + 0.5);
}

// Scale at which an object of this radius fills about half of the picture, within limits.
function closeUp(radius) {
  const wanted = Math.min(...panes[0].size()) / (4 * (radius + 4));
  return Math.max(smallest(), Math.min(wanted, Math.max(6, 1.5 * smallest())));
}

// Marks an error in the picture and in the list, without moving the picture.
function mark(error) {
  state.marked = error;
  byId("show-marks").checked = true;
  const list = byId("errors");
  list.querySelectorAll("button").forEach((button) => {
    if (button.mark !== error) { button.removeAttribute("aria-current"); return; }
    button.setAttribute("aria-current", "true");
    list.scrollTop = Math.max(0, button.offsetTop - list.offsetTop - list.clientHeight / 2); // scrolls the list, not the page
  });
  draw();
}

function nextError(by) {
  const marks = shownMarks();
  if (marks.length) goTo(marks[(marks.indexOf(state.marked) + by + marks.length) % marks.length]);
}
