// Attention over a picture: a word or a cell under the pointer looks, and what it looks at is lit.
// props.value = {picture, words, grid: [h, w], from_word, to_word, from_cell, cell_to_word}: rows of bytes in base64.
const find = (name) => element.querySelector(`.jaxpa-${name}`);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
let tables = null;

function show() {
  const value = props.value;
  find("look").hidden = !value;
  if (!value) return;
  tables = Object.fromEntries(
    ["from_word", "to_word", "from_cell", "cell_to_word"].map((name) => [name, bytes(value[name])]));
  find("picture").src = value.picture;
  find("words").replaceChildren(...value.words.map((word, k) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "jaxpa-word";
    chip.textContent = word;
    chip.dataset.k = k;
    return chip;
  }));
  dark();
}

function row(table, k, length) {
  return tables[table].subarray(k * length, (k + 1) * length);
}

function light(values, mark) {
  const [h, w] = props.value.grid, canvas = find("light");
  Object.assign(canvas, {width: w, height: h});
  const context = canvas.getContext("2d"), image = context.createImageData(w, h);
  values.forEach((value, i) => image.data.set([14, 12, 34, 225 * (1 - value / 255)], 4 * i));
  if (mark !== undefined) image.data.set([230, 15, 130, 255], 4 * mark);
  context.putImageData(image, 0, 0);
  element.dataset.lit = values.indexOf(255);
}

function chips(values) {
  find("words").querySelectorAll(".jaxpa-word").forEach((chip, k) => {
    chip.style.setProperty("--share", values ? values[k] / 255 : 0);
  });
}

function dark() {
  const canvas = find("light");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  chips(null);
  find("note").textContent = "Point at a word, or at a cell of the picture.";
}

function word(chip) {
  const [h, w] = props.value.grid, k = Number(chip.dataset.k), turned = find("turned").checked;
  chips(null);
  light(row(turned ? "to_word" : "from_word", k, h * w));
  find("note").textContent = turned ? `What looks at “${chip.textContent}”` : `Where “${chip.textContent}” looks`;
}

function cell(event) {
  const [h, w] = props.value.grid, whole = find("light").getBoundingClientRect();
  const x = Math.min(w - 1, Math.max(0, Math.floor(w * (event.clientX - whole.left) / whole.width)));
  const y = Math.min(h - 1, Math.max(0, Math.floor(h * (event.clientY - whole.top) / whole.height)));
  light(row("from_cell", y * w + x, h * w), y * w + x);
  chips(row("cell_to_word", y * w + x, props.value.words.length));
  find("note").textContent = `What the cell in row ${y + 1}, column ${x + 1} attends to`;
}

element.addEventListener("pointerover", (event) => {
  const chip = event.target.closest(".jaxpa-word");
  if (chip) word(chip);
});
element.addEventListener("focusin", (event) => {
  const chip = event.target.closest(".jaxpa-word");
  if (chip) word(chip);
});
element.addEventListener("pointermove", (event) => {
  if (event.target.closest(".jaxpa-view")) cell(event);
});
element.addEventListener("pointerleave", () => props.value && dark());
watch("value", show);
show();
