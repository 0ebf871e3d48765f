"use strict";

const bytesOf = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

/** Return numbers as Float32Array from their float16 bytes in base64. All numbers are finite. */
function float16(text) {
  const bits = new Uint16Array(bytesOf(text).buffer);
  return Float32Array.from(bits, half => {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return half & 0x8000 ? -size : size;
  });
}

/** Return the error function: Abramowitz & Stegun 7.1.26, exact to 1.5e-7. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const coefficients = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const polynomial = coefficients.reduce((sum, coefficient) => (sum + coefficient) * t, 0);
  return Math.sign(x) * (1 - polynomial * Math.exp(-x * x));
}

const sigmoid = x => 1 / (1 + Math.exp(-x));

const ACTIVATIONS = {
  relu: x => Math.max(x, 0),
  leaky_relu: x => (x > 0 ? x : 0.2 * x),
  "leaky_relu_0.3": x => (x > 0 ? x : 0.3 * x),
  tanh: Math.tanh,
  elu: x => (x > 0 ? x : Math.expm1(x)),
  gelu: x => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  silu: x => x * sigmoid(x),
};

/** Weights are (outputs, inputs), as in torch. */
function linear({ inputs, outputs }, x, weight, bias) {
  return Float32Array.from(bias, (sum, output) => {
    for (let input = 0; input < inputs; input++) sum += weight[output * inputs + input] * x[input];
    return sum;
  });
}

/** Weights are (inputs, outputs, kernel, kernel) and values (channels, height, width). */
function convTranspose(layer, x, weight, bias) {
  const { inputs, outputs, height, width, kernel, stride, padding } = layer;
  const size = side => (side - 1) * stride - 2 * padding + kernel;
  const rows = size(height), columns = size(width);
  const y = Float32Array.from({ length: outputs * rows * columns },
    (_, index) => bias[Math.floor(index / (rows * columns))]);
  for (let input = 0; input < inputs; input++)
    for (let i = 0; i < height; i++)
      for (let j = 0; j < width; j++) {
        const value = x[(input * height + i) * width + j];
        if (value === 0) continue;
        for (let output = 0; output < outputs; output++)
          for (let k = 0; k < kernel; k++) {
            const row = i * stride - padding + k;
            if (row < 0 || row >= rows) continue;
            for (let l = 0; l < kernel; l++) {
              const column = j * stride - padding + l;
              if (column >= 0 && column < columns)
                y[(output * rows + row) * columns + column] +=
                  value * weight[((input * outputs + output) * kernel + k) * kernel + l];
            }
          }
      }
  return y;
}

const add = (layer, x, weight, bias) => x.map((value, index) => value + bias[index]);

const LAYERS = { linear, conv_transpose: convTranspose, add };

const weightsOf = {
  add: () => 0,
  linear: layer => layer.inputs * layer.outputs,
  conv_transpose: layer => layer.inputs * layer.outputs * layer.kernel ** 2,
};

/** Return the function that decodes a code (one category per latent) to pixel probabilities. */
function buildDecoder({ categories, latents, layers, weights }) {
  const numbers = float16(weights);
  let position = 0;
  const take = count => numbers.subarray(position, position += count);
  const steps = layers.map(layer => {
    if (!(layer.type in weightsOf)) return x => x.map(ACTIVATIONS[layer.type]);
    const weight = take(weightsOf[layer.type](layer)), bias = take(layer.outputs);
    return x => LAYERS[layer.type](layer, x, weight, bias);
  });
  return code => {
    const oneHot = new Float32Array(latents * categories);
    code.forEach((category, latent) => { oneHot[latent * categories + category] = 1; });
    return steps.reduce((x, step) => step(x), oneHot).map(sigmoid);
  };
}

/** Draw a category from probabilities. */
function draw(probabilities) {
  let rest = Math.random();
  const category = probabilities.findIndex(probability => (rest -= probability) < 0);
  return category < 0 ? probabilities.length - 1 : category;
}

/** Make the explorer of one data set work. */
function explore(root) {
  const content = JSON.parse(root.querySelector("script").textContent);
  const find = name => root.querySelector(`.${name}`);
  const images = content.images.map(text => Float32Array.from(bytesOf(text), byte => byte / 255));
  let model, decode, code, pixels, image; // the state; image is null after a sample

  const grey = value => [255 * value, 255 * value, 255 * value];
  const addedOrRemoved = value => // orange if a pixel is added, blue if it is removed
    (value > 0 ? [230, 159, 0] : [86, 180, 233]).map(channel => channel * Math.abs(value));

  function paint(canvas, values, colour = grey) {
    [canvas.width, canvas.height] = [content.width, content.height];
    const picture = new ImageData(content.width, content.height);
    values.forEach((value, pixel) => picture.data.set([...colour(value), 255], 4 * pixel));
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function show(newCode, newImage) {
    [code, image, pixels] = [newCode, newImage, decode(newCode)];
    paint(find("decoded"), pixels);
    paint(find("original"), image === null ? new Float32Array(images[0].length) : images[image]);
    find("original").classList.toggle("empty", image === null);
    find("code").textContent = code.join(" ");
    for (const button of find("categories").querySelectorAll("button"))
      button.setAttribute("aria-pressed", code[button.dataset.latent] == button.dataset.category);
    for (const [index, button] of [...find("images").children].entries())
      button.setAttribute("aria-pressed", index === image);
    preview(pixels);
  }

  function preview(changed) {
    paint(find("preview"), changed);
    paint(find("change"), changed.map((value, pixel) => value - pixels[pixel]), addedOrRemoved);
  }

  function choose(index) {
    model = content.models[index];
    decode = buildDecoder(model);
    find("categories").replaceChildren(...Array.from({ length: model.latents }, buildRow));
    image ??= 0;
    show(model.codes[image], image);
  }

  function buildRow(_, latent) {
    const row = document.createElement("div");
    row.role = "group";
    row.ariaLabel = `latent ${latent}`;
    const name = document.createElement("span");
    name.textContent = `latent ${latent}`;
    row.append(name, ...Array.from({ length: model.categories }, (_, category) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: category });
      Object.assign(button.dataset, { latent, category });
      return button;
    }));
    return row;
  }

  /** Return the code in which the latent of a button has the category of the button. */
  const codeOf = ({ dataset }) => code.with(dataset.latent, Number(dataset.category));
  const onButton = (element, event, action) => element.addEventListener(event, ({ target }) => {
    const button = target.closest("button");
    if (button) action(button);
  });

  const grid = find("categories");
  onButton(grid, "click", button => show(codeOf(button), image));
  onButton(grid, "pointerover", button => preview(decode(codeOf(button))));
  onButton(grid, "focusin", button => preview(decode(codeOf(button))));
  for (const event of ["pointerleave", "focusout"])
    grid.addEventListener(event, () => preview(pixels));
  find("sample").addEventListener("click", () => show(model.prior.map(draw), null));
  find("model").addEventListener("change", ({ target }) => choose(target.value));
  images.forEach((values, index) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    Object.assign(button, { type: "button", ariaLabel: `test image ${index}` });
    button.addEventListener("click", () => show(model.codes[index], index));
    button.append(canvas);
    paint(canvas, values);
    find("images").append(button);
  });
  choose(0);
}

document.querySelectorAll(".explorer").forEach(explore);
