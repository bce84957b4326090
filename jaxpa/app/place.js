// The canvas on which subjects are placed: boxes that are dragged, resized at their corner, and moved by arrow keys.
// props.value = {width, height, grid: [h, w], scene, boxes: [{label, src, at, shown}]}; `at` is null until it is moved.
const LEAST = 0.04;
const stage = () => element.querySelector(".jaxpa-stage");
const percent = (part) => `${100 * part}%`;
const rounded = (part) => Math.round(1000 * part) / 1000;

function lay(node, [left, top, right, bottom]) {
  Object.assign(node.style, {
    left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top),
  });
}

function node(box, k) {
  const made = document.createElement("div");
  made.className = "jaxpa-box" + (box.at ? "" : " jaxpa-unplaced");
  made.tabIndex = 0;
  made.dataset.k = k;
  made.title = "Drag to place; the corner resizes; arrow keys move it by a cell";
  if (box.src) {
    const image = made.appendChild(document.createElement("img"));
    image.src = box.src;
    image.draggable = false;
    image.alt = box.label;
  }
  const label = made.appendChild(document.createElement("span"));
  label.textContent = box.label;
  made.appendChild(document.createElement("i"));
  lay(made, box.shown);
  return made;
}

function show() {
  const value = props.value || {boxes: [], width: 1, height: 1};
  stage().style.aspectRatio = `${value.width} / ${value.height}`;
  stage().style.maxWidth = `${Math.min(1, value.width / value.height) * 17}rem`;
  stage().style.backgroundImage = value.scene ? `url(${value.scene})` : "";
  stage().replaceChildren(...value.boxes.map(node));
}

function commit(k, shown) {
  const at = shown.map(rounded);
  const boxes = props.value.boxes.map((box, i) => (i === k ? {...box, at, shown: at} : box));
  props.value = {...props.value, boxes, moved: k};
  show();
  trigger("input");
}

function moved([left, top, right, bottom], dx, dy) {
  dx = Math.max(-left, Math.min(1 - right, dx));
  dy = Math.max(-top, Math.min(1 - bottom, dy));
  return [left + dx, top + dy, right + dx, bottom + dy];
}

let held = null;
element.addEventListener("pointerdown", (event) => {
  const box = event.target.closest(".jaxpa-box");
  if (!box) return;
  event.preventDefault();
  box.focus();
  const k = Number(box.dataset.k);
  const whole = stage().getBoundingClientRect();
  held = {k, box, whole, x: event.clientX, y: event.clientY, from: props.value.boxes[k].shown,
          resizes: event.target.tagName === "I", shown: null};
  element.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!held) return;
  const dx = (event.clientX - held.x) / held.whole.width, dy = (event.clientY - held.y) / held.whole.height;
  const [left, top, right, bottom] = held.from;
  held.shown = held.resizes
    ? [left, top, Math.max(left + LEAST, Math.min(1, right + dx)), Math.max(top + LEAST, Math.min(1, bottom + dy))]
    : moved(held.from, dx, dy);
  lay(held.box, held.shown);
});
element.addEventListener("pointerup", () => {
  const last = held;
  held = null;
  if (last && last.shown) commit(last.k, last.shown);
});
element.addEventListener("keydown", (event) => {
  const box = event.target.closest(".jaxpa-box");
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!box || !step) return;
  event.preventDefault();
  const k = Number(box.dataset.k), [h, w] = props.value.grid;
  commit(k, moved(props.value.boxes[k].shown, step[0] / w, step[1] / h));
  element.querySelector(`.jaxpa-box[data-k="${k}"]`).focus();
});
watch("value", show);
show();
