"use strict";
/* The page: what is chosen, the two attacks, and how they are drawn. */
(() => {
  const model = JSON.parse(document.getElementById("model").textContent);
  const numbers = Engine.halves(model.numbers);
  const nets = Object.fromEntries(Object.entries(model.nets).map(([name, layers]) => [name, Engine.network(layers, numbers)]));
  const [channels, height, width] = model.shape, [low, high] = model.box;
  const images = model.images.map(([start]) => numbers.slice(start, start + channels * height * width));
  const at = (id) => document.getElementById(id);
  const KNOWS = { loss: "margin", step: 2.5 / model.claimed.steps }, CLAIMED = { loss: "cross_entropy", step: model.claimed.step };
  const state = { kind: "jump", image: "0", seed: 0, strokes: [], turn: 0 };

  /* ------------------------------------------------------------------------------- pixels */
  const shade = (v) => Math.round((255 * (v - low)) / (high - low));
  function paint(canvas, colour) {
    canvas.width = width; canvas.height = height;
    const pen = canvas.getContext("2d"), out = pen.createImageData(width, height);
    for (let i = 0; i < width * height; i++) out.data.set(colour(i), 4 * i);
    pen.putImageData(out, 0, 0);
  }
  const seen = (x) => (i) => (channels === 1 ? [shade(x[i]), shade(x[i]), shade(x[i]), 255] : [0, 1, 2].map((c) => shade(x[c * width * height + i])).concat(255));
  function moved(x, clean, eps) {
    return (i) => {
      let most = 0;
      for (let c = 0; c < channels; c++) {
        const d = x[c * width * height + i] - clean[c * width * height + i];
        if (Math.abs(d) > Math.abs(most)) most = d;
      }
      const share = eps ? Math.min(1, Math.abs(most) / eps) : 0;
      return [most > 0 ? 235 : 120, most > 0 ? 50 : 20, most > 0 ? 40 : 15, Math.round(255 * share)];
    };
  }

  /* ------------------------------------------------------------------------------ drawing */
  const pad = at("pad");
  function strokesOn(pen, place, thick) {
    pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#fff"; pen.lineWidth = thick;
    for (const line of state.strokes) {
      pen.beginPath();
      line.forEach(([x, y], i) => (i ? pen.lineTo(...place(x, y)) : pen.moveTo(...place(x, y))));
      if (line.length === 1) pen.lineTo(...place(line[0][0] + 0.001, line[0][1]));
      pen.stroke();
    }
  }
  /* as MNIST has it: the strokes fill five sevenths of the image, their centre of mass in its middle */
  function drawnImage() {
    const points = state.strokes.flat(), empty = new Float32Array(width * height).fill(low);
    if (!points.length) return empty;
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const [left, top] = [Math.min(...xs), Math.min(...ys)], size = Math.max(Math.max(...xs) - left, Math.max(...ys) - top, 0.2);
    const scale = ((5 / 7) * width - 2) / size, render = (dx, dy) => {
      const canvas = Object.assign(document.createElement("canvas"), { width, height }), pen = canvas.getContext("2d");
      pen.fillRect(0, 0, width, height);
      strokesOn(pen, (x, y) => [(x - left) * scale + dx, (y - top) * scale + dy], Math.max(1, width * 0.085));
      return pen.getImageData(0, 0, width, height).data;
    };
    const first = render(width / 7, height / 7);
    let mass = 1e-9, mx = 0, my = 0;
    for (let i = 0; i < width * height; i++) { const v = first[4 * i]; mass += v; mx += v * (i % width); my += v * Math.floor(i / width); }
    const data = render(width / 7 + (width - 1) / 2 - mx / mass, height / 7 + (height - 1) / 2 - my / mass);
    return empty.map((_, i) => low + ((high - low) * data[4 * i]) / 255);
  }
  function showPad(cursor) {
    const pen = pad.getContext("2d");
    pen.fillStyle = "#000"; pen.fillRect(0, 0, 280, 280);
    strokesOn(pen, (x, y) => [280 * x, 280 * y], 22);
    if (cursor) { pen.strokeStyle = "#f66"; pen.lineWidth = 2; pen.strokeRect(280 * cursor[0] - 6, 280 * cursor[1] - 6, 12, 12); }
  }
  function usePad() {
    let line = null, cursor = [0.5, 0.3];
    const where = (e) => { const r = pad.getBoundingClientRect(); return [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height]; };
    const changed = (mark) => { showPad(mark); choose("drawn"); };
    pad.addEventListener("pointerdown", (e) => { pad.setPointerCapture(e.pointerId); state.strokes.push((line = [where(e)])); changed(); });
    pad.addEventListener("pointermove", (e) => { if (line) { line.push(where(e)); showPad(); } });
    for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { if (line) { line = null; changed(); } });
    pad.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (!step) return;
      e.preventDefault();
      const next = cursor.map((v, i) => Math.min(0.95, Math.max(0.05, v + 0.04 * step[i])));
      if (e.shiftKey) { if (!line) state.strokes.push((line = [cursor])); line.push(next); } else line = null;
      cursor = next;
      if (e.shiftKey) changed(cursor); else showPad(cursor);
    });
    pad.addEventListener("blur", () => { line = null; showPad(); });
    at("clear").addEventListener("click", () => { state.strokes = []; showPad(); choose("drawn"); });
    showPad();
  }
  function choose(value) {
    document.querySelector(`input[name=image][value="${value}"]`).checked = true;
    state.image = value;
    keep();
    run();
  }

  /* ------------------------------------------------------------------------------ figures */
  const tag = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    made.textContent = text;
    return made;
  };
  const round = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(0) : String(+v.toPrecision(3)));
  /* lines: {points: [[x, y]], name, look}; marks: [[x, y]] */
  function plot(svg, lines, { xs, ys, across, along, zero = false, marks = [], percent = false }) {
    const [, , w, h] = svg.getAttribute("viewBox").split(" ").map(Number), m = { left: 52, right: 12, top: 24, bottom: 36 };
    const px = (x) => m.left + ((x - xs[0]) / (xs[1] - xs[0] || 1)) * (w - m.left - m.right);
    const py = (y) => h - m.bottom - ((y - ys[0]) / (ys[1] - ys[0] || 1)) * (h - m.top - m.bottom);
    const say = (v) => (percent ? `${Math.round(100 * v)} %` : round(v));
    const parts = [tag("text", { x: 4, y: 12 }, along), tag("text", { x: w - m.right, y: h - 4, "text-anchor": "end" }, across)];
    for (const y of ticks(ys)) {
      parts.push(tag("line", { class: "axis", x1: m.left, x2: w - m.right, y1: py(y), y2: py(y) }));
      parts.push(tag("text", { x: m.left - 6, y: py(y) + 4, "text-anchor": "end" }, say(y)));
    }
    for (const x of ticks(xs)) parts.push(tag("text", { x: px(x), y: h - m.bottom + 15, "text-anchor": "middle" }, round(x)));
    if (zero && ys[0] < 0 && ys[1] > 0) parts.push(tag("line", { class: "zero", x1: m.left, x2: w - m.right, y1: py(0), y2: py(0) }), tag("text", { x: m.left + 4, y: py(0) - 4 }, "fooled above 0"));
    for (const l of lines) parts.push(tag("polyline", { class: l.look, points: l.points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ") }));
    for (const [x, y] of marks) parts.push(tag("circle", { cx: px(x), cy: py(y), r: 4.5 }));
    svg.replaceChildren(...parts);
    svg.setAttribute("aria-label", `${along} over ${across}: ${lines.map((l) => `${l.name}, from ${say(l.points[0][1])} to ${say(l.points[l.points.length - 1][1])}`).join("; ")}`);
    return { px, py };
  }
  /* round numbers between two ends, three to six of them */
  function ticks([a, b]) {
    const rough = (b - a) / 5, size = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].find((f) => f * size >= rough) * size;
    const found = [];
    for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) found.push(+(k * step).toPrecision(12));
    return found;
  }
  function span(values) {
    const a = Math.min(...values), b = Math.max(...values), room = (b - a || Math.abs(b) || 1) * 0.06;
    return [a - room, b + room];
  }
  function drawLoss(id, attacks, field, along) {
    const kept = attacks.filter(([, a]) => a.path.length), all = kept.flatMap(([, a]) => a.path.map((p) => p[field]));
    if (!kept.length) return;
    const lines = kept.map(([look, a, name]) => ({ look, name, points: a.path.map((p, i) => [i, p[field]]) }));
    const marks = kept.filter(([, a]) => a.fooled).map(([, a]) => [a.fooled.step, a.path[a.fooled.step][field]]);
    plot(at(id), lines, { xs: [0, model.claimed.steps], ys: field === "loss" ? [0, 1.05 * Math.max(...all) || 1] : span(all), across: "step", along, zero: field === "margin", marks });
  }
  function drawCurves() {
    const svg = at("plot-curves");
    if (!svg) return;
    const mine = model.curves.filter((c) => c.kind === state.kind), shown = mine.length ? mine[0] : model.curves[0];
    const plain = state.kind === "plain", end = plain ? "_before" : "", line = (field) => shown.points.map((p) => [p.eps, p[field]]);
    const lines = [{ look: "claimed", name: "claimed", points: line(`claimed${end}`) }, { look: "knows dashed", name: "verified", points: line(`verified${end}`) }];
    const measured = plain || mine.length;
    if (!plain) lines.push({ look: "twin", name: "plain, verified", points: line("verified_before") });
    const most = Math.max(...shown.points.map((p) => p.eps));
    const { px, py } = plot(svg, measured ? lines : [], { xs: [0, most || 1], ys: [0, 1], across: "ε", along: "accuracy", percent: true });
    lines.forEach((l, i) => measured && svg.append(tag("line", { class: l.look, "stroke-width": 2, x1: 84 + 78 * i, x2: 106 + 78 * i, y1: 9, y2: 9 }), tag("text", { class: l.look, x: 110 + 78 * i, y: 12 }, l.name)));
    const eps = Number(at("eps").value);
    if (measured && eps <= most) svg.append(tag("line", { class: "zero", x1: px(eps), x2: px(eps), y1: py(0), y2: py(1) }));
    at("about-curves").textContent = !measured ? "No audit of this activation was given when the page was made."
      : `${plain ? "The plain network" : shown.name}, audited beforehand on ${shown.n} images of ${shown.data} at ε = ${shown.points.slice(1).map((p) => p.eps).join(", ")}. Claimed: the papers' attack. Verified: the worst case over an audit's attacks. Dotted: the ε chosen above.`;
  }
  const percent = (p) => (p > 0.9995 && p < 1 ? ">99.9 %" : `${(100 * p).toFixed(1)} %`);
  function card(id, x, z, clean, truth, eps) {
    const box = at(id), p = Engine.softmax(z), decided = Engine.argmax(z), named = model.classes[decided];
    const [first, second] = box.querySelectorAll("canvas"), wrong = decided !== truth, caption = box.querySelector(".decided");
    paint(first, seen(x));
    first.setAttribute("aria-label", `The image as the network sees it, decided ${named}`);
    if (second) { paint(second, moved(x, clean, eps)); second.setAttribute("aria-label", `The perturbation, at most ${round(eps)} a pixel`); }
    caption.textContent = `decided ${named}, ${percent(p[decided])} sure`;
    caption.classList.toggle("wrong", wrong);
    box.className = wrong ? "bad" : "good";
    for (const p of box.querySelectorAll(".truth")) p.textContent = `${p.dataset.word} ${model.classes[truth]}`;
    const best = [...p.keys()].sort((a, b) => z[b] - z[a]).slice(0, 3);
    box.querySelector(".bars").replaceChildren(...best.map((c) => {
      const row = document.createElement("li");
      row.innerHTML = '<span class="name"></span><span class="bar"><span></span></span><span class="percent"></span>';
      row.firstChild.textContent = model.classes[c];
      row.querySelector(".bar span").style.width = `${100 * p[c]}%`;
      row.lastChild.textContent = percent(p[c]);
      row.classList.toggle("wrong", c !== truth);
      return row;
    }));
  }

  /* -------------------------------------------------------------------------- the attacks */
  function chosen() {
    const drawn = state.image === "drawn", x = drawn ? drawnImage() : images[Number(state.image)];
    const how = { kind: state.kind, kappa: Number(at("kappa").value), alpha: slopeOf(at("alpha").value) };
    const net = nets[state.kind === "hardened" ? "hardened" : "plain"], z = Engine.logits(net, x, how);
    const label = drawn ? Engine.argmax(z) : model.labels[Number(state.image)];
    return { x, how, net, z, label, drawn, eps: Number(at("eps").value) };
  }
  const slopeOf = (value) => +(10 ** Number(value)).toPrecision(2);
  function attacksOn({ x, how, net, label, eps }) {
    const more = { eps, seed: state.seed, steps: model.claimed.steps, box: model.box };
    const claimed = new Engine.Pgd(net, x, label, how, { ...more, ...CLAIMED });
    return [claimed, new Engine.Pgd(net, x, label, { ...how, sharpness: model.sharpness }, { ...more, ...KNOWS })];
  }
  async function run() {
    const turn = ++state.turn, what = chosen(), [claimed, knows] = attacksOn(what);
    document.body.dataset.state = "running";
    card("card-clean", what.x, what.z, what.x, what.label, what.eps);
    drawCurves();
    let began = performance.now();
    while (!claimed.done || !knows.done) {
      for (const attack of [claimed, knows]) if (!attack.done) attack.advance();
      if (performance.now() - began > 14) {
        await new Promise((go) => setTimeout(go));
        if (turn !== state.turn) return;
        began = performance.now();
      }
    }
    card("card-claimed", claimed.shown.x, claimed.shown.logits, what.x, what.label, what.eps);
    card("card-knows", knows.shown.x, knows.shown.logits, what.x, what.label, what.eps);
    drawLoss("plot-claimed", [["claimed", claimed, "the claimed attack"]], "loss", "cross-entropy");
    drawLoss("plot-knows", [["claimed", claimed, "the claimed attack"], ["knows dashed", knows, "the attack that knows"]], "margin", "margin");
    tell(what, claimed, knows);
    document.body.dataset.state = "ready";
  }
  const fellTo = (attack) => `from step ${attack.fooled.step} it says ${model.classes[Engine.argmax(attack.fooled.logits)]}`;
  function why(how, dead, points) {
    if (dead) return `${dead} of the claimed attack's ${points} gradients are exactly zero: there it stands still.`;
    if (how.kind === "jump" && how.kappa > 0) return "The claimed attack's gradient does not see the jumps.";
    if (how.kind === "slope" && how.alpha > 1) return "The slope makes all scores larger; the claimed attack's gradients are not zero here.";
    return "No gradient is hidden here: the two attacks differ by their loss and their steps.";
  }
  function tell(what, claimed, knows) {
    const dead = claimed.path.filter((p) => p.dead).length, truth = model.classes[what.label], wrong = Engine.argmax(what.z) !== what.label;
    const [text, tone] = wrong ? [`Without any attack the network says ${model.classes[Engine.argmax(what.z)]} to this ${truth}.`, "warn"]
      : claimed.fooled && knows.fooled ? [`Both attacks fool the network: under the claimed one ${fellTo(claimed)}, under the one that knows ${fellTo(knows)}.`, "bad"]
      : knows.fooled ? [`The claimed attack fails, and the network looks robust. The attack that knows fools it: ${fellTo(knows)}.`, "bad"]
      : claimed.fooled ? [`The claimed attack fools the network (${fellTo(claimed)}), this once the other does not. An audit takes the worst of all.`, "bad"]
      : [`Neither attack turns this ${truth} into another class within ε = ${round(what.eps)}. That is no proof: an audit tries many more.`, "good"];
    const drawn = what.drawn ? " Your drawing has no true class; the network's own decision stands in for it." : "";
    at("said").textContent = text;
    at("because").textContent = why(what.how, dead, claimed.path.length) + drawn;
    at("verdict").className = `verdict ${tone}`;
    at("about-claimed").textContent = `${dead} of ${claimed.path.length} gradients exactly zero. ${claimed.fooled ? `The dot: first fooled, at step ${claimed.fooled.step}.` : "Never fooled."}`;
    at("about-knows").textContent = `Blue: the claimed attack; red, dashed: the one that knows. ${knows.fooled ? "A dot: first fooled." : "Never fooled."}`;
  }

  /* ----------------------------------------------------------------------------- controls */
  function showValues() {
    at("kappa-out").value = Number(at("kappa").value).toFixed(2);
    at("alpha-out").value = round(slopeOf(at("alpha").value));
    at("eps-out").value = Number(at("eps").value).toFixed(2);
    at("kappa-row").hidden = state.kind !== "jump";
    at("alpha-row").hidden = state.kind !== "slope";
    for (const id of ["kappa", "alpha", "eps"]) at(id).setAttribute("aria-valuetext", at(`${id}-out`).value);
  }
  function fillThumbs() {
    images.forEach((x, i) => {
      const label = document.createElement("label"), input = document.createElement("input"), canvas = document.createElement("canvas");
      Object.assign(input, { type: "radio", name: "image", value: String(i), checked: i === 0 });
      input.setAttribute("aria-label", `image ${model.rows[i]}, class ${model.classes[model.labels[i]]}`);
      canvas.setAttribute("aria-hidden", "true");
      paint(canvas, seen(x));
      label.append(input, canvas);
      at("thumbs").append(label);
    });
  }
  /* the largest difference from the logits that torch computed, over the largest logit */
  function agreement() {
    let worst = 0;
    for (const name in nets) images.forEach((x, i) => {
      const said = model.answers[name][i], size = Math.max(...said.map(Math.abs));
      Engine.logits(nets[name], x, { kind: name }).forEach((v, k) => { worst = Math.max(worst, Math.abs(v - said[k]) / size); });
    });
    return worst;
  }
  /* what is chosen stands in the address, so that it can be handed on */
  function keep() {
    const said = { kind: state.kind, image: state.image, kappa: at("kappa").value, alpha: slopeOf(at("alpha").value), eps: at("eps").value };
    location.replace(`#${new URLSearchParams(said)}`);
  }
  function begin() {
    const said = new URLSearchParams(location.hash.slice(1)), number = (name) => (said.get(name) > 0 ? Number(said.get(name)) : model[name]);
    Object.assign(at("kappa"), { max: String(Math.max(2, 2 * model.kappa)) }).value = number("kappa");
    Object.assign(at("alpha"), { max: String(Math.max(3, Math.log10(model.alpha))) }).value = Math.log10(number("alpha"));
    Object.assign(at("eps"), { max: String(Math.max(0.3, model.eps)) }).value = number("eps");
    fillThumbs();
    if (pad) usePad();
    for (const name of ["kind", "image"]) {
      const wanted = [...document.getElementsByName(name)].find((input) => input.value === said.get(name));
      if (wanted) state[name] = wanted.value;
      document.querySelector(`input[name=${name}][value="${state[name]}"]`).checked = true;
    }
    at("setup").addEventListener("submit", (e) => e.preventDefault());
    at("setup").addEventListener("input", (e) => {
      if (e.target.name === "kind") state.kind = e.target.value;
      if (e.target.name === "image") state.image = e.target.value;
      showValues();
      keep();
      run();
    });
    at("again").addEventListener("click", () => { state.seed += 1; run(); });
    showValues();
    at("agreement").textContent = `On them its logits and PyTorch's differ by at most ${round(100 * agreement())} % of the largest.`;
    run();
  }
  begin();
})();
