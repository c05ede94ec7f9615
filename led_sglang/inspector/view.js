"use strict";
// Rendering only. Everything that a model or a person wrote enters the page through textContent.
const Led = {};

Led.el = function (tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};

Led.svg = function (tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};

Led.percent = (p) => (p === null || p === undefined ? "–" : p >= 0.9995 ? "100 %" : p < 0.0005 ? "0 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toFixed(1)} %`);
Led.show = (text) => (text === "" ? "▯" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣"));
Led.isTurn = (token) => Boolean(token.explored && token.candidates && token.candidates[0][0] !== token.id);

// One token of the running text.
Led.token = function (token, at, side) {
  const node = Led.el("span", { class: "t", role: "option", tabindex: "-1", "data-at": at });
  const word = Led.el("span", { class: "w" }); // the tint leaves out the space before a word, and a line may break there
  const space = token.text.trim() ? token.text.match(/^ */)[0] : "";
  node.append(space, word);
  if (token.text === "") word.append(Led.el("span", { class: "split" }, "▯"));
  token.text.slice(space.length).split("\n").forEach((part, i) => {
    if (i) word.append(Led.el("span", { class: "nl", "aria-hidden": "true" }, "↵"), Led.el("span", { class: "br" }, "\n"));
    word.append(part);
  });
  if (token.special) node.classList.add("special");
  if (token.confidence !== null) node.style.setProperty("--u", Math.pow(1 - token.confidence, 0.8).toFixed(3));
  if (side === "led" && token.explored) {
    node.classList.add("x");
    if (Led.isTurn(token)) {
      node.classList.add("turn");
      word.dataset.depth = token.depth;
    }
  }
  node.setAttribute("aria-label", Led.say(token, side));
  return node;
};

Led.say = function (token, side) {
  const name = token.text.trim() || Led.show(token.text);
  if (token.confidence === null) return name;
  const how = side === "led" && token.explored ? `, explored at depth ${token.depth}` : "";
  return `${name}, confidence ${Led.percent(token.confidence)}${how}`;
};

// A sample's text, appended to as tokens arrive; thinking and answer are blocks of their own.
Led.Text = class {
  constructor(box, side) {
    this.box = box;
    this.side = side;
    this.clear();
  }
  clear() {
    this.box.replaceChildren();
    this.tokens = [];
    this.nodes = [];
    this.phase = null;
  }
  push(token) {
    const name = token.think ? "thinking" : "answer";
    if (!this.phase || !this.phase.classList.contains(name)) {
      this.phase = Led.el("div", { class: `phase ${name}`, "data-name": name, role: "presentation" });
      this.box.append(this.phase);
    }
    const node = Led.token(token, this.tokens.length, this.side);
    if (!this.nodes.length) node.tabIndex = 0;
    this.tokens.push(token);
    this.nodes.push(node);
    this.phase.append(node);
    if (token.text.trim()) this.phase.classList.add("begun");
    else if (!this.phase.classList.contains("begun")) node.classList.add("lead"); // a block does not open with empty lines
  }
};

// What is known of one token: the card that hovering or focusing opens.
Led.detail = function (token, at, side) {
  const card = document.createDocumentFragment();
  const isLed = side === "led";
  const head = Led.el("div", { class: "head" }, Led.el("span", { class: "what" }, Led.show(token.text)), Led.el("span", { class: "badge" }, `token ${at + 1}`));
  card.append(head);
  if (token.confidence === null) {
    card.append(Led.el("p", { class: "facts" }, "Outside the thinking phase: the engine's own sampler decided, as the request's parameters say."));
    return card;
  }
  if (isLed) head.append(Led.el("span", { class: token.explored ? "badge explored" : "badge" }, token.explored ? `explored, depth ${token.depth}` : "exploited"));
  const facts = Led.el("p", { class: "facts" });
  const fact = (name, value, key) => facts.append(facts.childNodes.length ? " · " : "", `${name} `, Led.el("b", { "data-fact": key }, value));
  fact("confidence", Led.percent(token.confidence), "confidence");
  if (token.entropy !== null) fact("entropy", `${token.entropy.toFixed(2)} nats`, "entropy");
  if (token.logprob !== null) fact("log p", token.logprob.toFixed(2).replace("-", "−"), "logprob");
  card.append(facts);
  if (token.candidates) {
    if (isLed) card.append(Led.preference(token));
    card.append(Led.bars(token, isLed));
  }
  if (isLed && token.depth_entropy && token.depth_entropy.length > 1) card.append(Led.plot(token.depth_entropy, token.depth));
  return card;
};

Led.preference = function (token) {
  const [id, text] = token.candidates[0];
  const share = Led.percent(token.exploit[0]);
  if (id === token.id) return Led.el("p", { class: "instead" }, `Plain sampling prefers it too (${share}).`);
  return Led.el("p", { class: "instead" }, "Plain sampling would have preferred ", Led.el("code", {}, Led.show(text)), ` (${share}).`);
};

Led.bars = function (token, isLed) {
  const titles = isLed ? ["", "exploit", "explore"] : ["", "final layer"];
  const table = Led.el("table", { class: "bars" }, Led.el("tr", {}, ...titles.map((title, i) => Led.el("th", { class: i ? null : "name" }, title))));
  const top = Math.max(...token.exploit, ...token.explore, 1e-9);
  const meter = (p, kind) => {
    const bar = Led.el("i");
    bar.style.width = `calc((100% - 3.1rem) * ${(p / top).toFixed(4)})`;
    return Led.el("td", {}, Led.el("div", { class: `meter ${kind}`, "data-p": p }, bar, Led.el("span", {}, Led.percent(p))));
  };
  token.candidates.forEach(([id, text], i) => {
    if (token.exploit[i] === 0 && token.explore[i] === 0) return;
    if (i >= 10 && id !== token.id) return;
    const name = Led.el("td", { class: "name" }, Led.el("code", {}, Led.show(text)));
    const row = Led.el("tr", { class: id === token.id ? "chosen" : null, "data-id": id }, name, meter(token.exploit[i], "exploit"));
    if (isLed) row.append(meter(token.explore[i], "explore"));
    table.append(row);
  });
  return table;
};

// Entropy (nats) of the aggregate at each depth; the largest is the depth that exploration uses.
Led.plot = function (entropies, depth) {
  const [width, height, left, bottom] = [330, 74, 24, 14];
  const high = Math.max(...entropies, 0.1) * 1.08;
  const x = (i) => left + 6 + (i * (width - left - 14)) / (entropies.length - 1);
  const y = (value) => 6 + (height - bottom - 8) * (1 - value / high);
  const root = Led.svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Entropy at depths 1 to ${entropies.length}: ${entropies.map((e) => e.toFixed(2)).join(", ")}` });
  const points = entropies.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const base = height - bottom;
  root.append(
    Led.svg("line", { class: "axis", x1: left, x2: width, y1: base, y2: base }),
    Led.svg("text", { x: left - 4, y: y(high / 1.08) + 4, "text-anchor": "end" }, (high / 1.08).toFixed(1)),
    Led.svg("text", { x: left - 4, y: base, "text-anchor": "end" }, "0"),
    Led.svg("polygon", { class: "area", points: `${x(0)},${base} ${points.join(" ")} ${x(entropies.length - 1)},${base}` }),
    Led.svg("polyline", { class: "line", points: points.join(" ") }),
  );
  entropies.forEach((value, i) => {
    const isBest = i + 1 === depth;
    root.append(Led.svg("circle", { class: isBest ? "best" : "", cx: x(i), cy: y(value), r: isBest ? 4 : 2.5 }));
    if (isBest || entropies.length <= 16 || i % 4 === 0) root.append(Led.svg("text", { class: isBest ? "best" : "", x: x(i), y: height - 2, "text-anchor": "middle" }, i + 1));
  });
  return Led.el("div", { class: "plot", "data-depth": depth }, Led.el("h3", {}, "entropy by depth, nats"), root);
};

// Figures of one side over all of its samples.
Led.figures = function (samples, side) {
  const tokens = samples.flatMap((sample) => sample.tokens);
  const decided = tokens.filter((token) => token.depth !== null);
  const explored = decided.filter((token) => token.explored);
  const times = samples.flatMap(({ tokens }) => (tokens.length ? [tokens[0].at, tokens[tokens.length - 1].at] : []));
  const seconds = times.length ? (Math.max(...times) - Math.min(...times)) / 1000 : 0;  // by the server's clock
  const isLed = side === "led";
  return {
    tokens: String(tokens.length),
    explored: isLed && decided.length ? Led.percent(explored.length / decided.length) : "–",
    "mean depth": isLed && explored.length ? (explored.reduce((sum, token) => sum + token.depth, 0) / explored.length).toFixed(1) : "–",
    "tokens/s": seconds > 0.05 ? String(Math.round((tokens.length - samples.length) / seconds)) : "–",
  };
};

Led.summary = function (box, figures) {
  box.replaceChildren(...Object.entries(figures).map(([name, value]) => Led.el("div", { "data-figure": name }, Led.el("dt", {}, name), Led.el("dd", {}, value))));
};
