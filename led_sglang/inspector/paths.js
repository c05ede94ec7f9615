"use strict";
// Where several samples of one question part: a tree of their tokens, drawn from left to right.

// Samples in an order that keeps shared beginnings together, and the tree's segments:
// {start, end, members, children}, tokens [start, end) shared by `members`.
Led.grow = function (samples) {
  const build = (members, start) => {
    let end = start;
    const next = (at) => members.map((i) => (at < samples[i].tokens.length ? samples[i].tokens[at].id : null));
    for (; ; end++) {
      const ids = next(end);
      if (ids.every((id) => id === null)) return { start, end, members, children: [] };
      if (new Set(ids).size > 1) break;
    }
    const groups = new Map();
    next(end).forEach((id, j) => groups.set(id, [...(groups.get(id) || []), members[j]]));
    return { start, end, members, children: [...groups.values()].map((group) => build(group, end)) };
  };
  const root = build(samples.map((_, i) => i), 0);
  const order = [];
  const visit = (node) => (node.children.length ? node.children.forEach(visit) : order.push(...node.members));
  visit(root);
  return { root, order };
};

Led.answer = (sample) => sample.tokens.filter((t) => !t.think && !t.special).map((t) => t.text).join("").trim();

Led.tree = function (samples, width, onPick) {
  const { root, order } = Led.grow(samples);
  const isNarrow = width < 560;
  const [gap, top, left, right] = [20, 10, 8, isNarrow ? 112 : 230];
  const longest = Math.max(...samples.map((s) => s.tokens.length), 1);
  const lane = new Map(order.map((i, rank) => [i, rank]));
  const x = (at) => left + ((width - left - right) * at) / longest;
  const y = (members) => top + (gap * members.reduce((sum, i) => sum + lane.get(i), 0)) / members.length;
  const svg = Led.svg("svg", { viewBox: `0 0 ${width} ${top * 2 + gap * (samples.length - 1)}`, role: "group", "aria-label": "Tree of the samples" });
  const marks = [];
  const draw = (node, from) => {
    const [x0, x1, y1] = [x(node.start), x(node.end), y(node.members)];
    const bend = Math.min(14, Math.max(3, (x1 - x0) / 2));
    const start = from === null ? `M${x0} ${y1}` : `M${x0} ${from} C${x0 + bend} ${from} ${x0 + bend / 3} ${y1} ${x0 + bend} ${y1}`;
    const path = Led.svg("path", { d: `${start} L${Math.max(x1, x0 + bend)} ${y1}`, "stroke-width": 1.5 + 1.1 * Math.sqrt(node.members.length - 1) });
    if (node.members.every((i) => samples[i].side === "plain")) path.classList.add("plain-lane");
    svg.append(path);
    for (let at = node.start; at < node.end; at++) {
      const who = node.members.find((i) => samples[i].side === "led" && Led.isTurn(samples[i].tokens[at]));
      if (who !== undefined) marks.push(Led.svg("circle", { class: "turnmark", cx: Math.max(x(at + 0.5), x0 + (at === node.start && from !== null ? bend : 0)), cy: y1, r: 2.6 }));
    }
    node.children.forEach((child) => draw(child, y1));
    if (node.children.length) marks.push(Led.fork(samples, node, x1, y1, onPick));
  };
  draw(root, null);
  svg.append(...marks);
  samples.forEach((sample, i) => {
    const end = Led.svg("text", { class: "end", x: x(sample.tokens.length) + 8, y: y([i]) + 4 });
    const answer = Led.answer(sample).replace(/\s+/g, " ");
    const room = isNarrow ? 9 : 30;
    end.textContent = `${sample.name}  ${answer.length > room ? "…" + answer.slice(-room) : answer}`;
    svg.append(end);
  });
  return svg;
};

Led.fork = function (samples, node, cx, cy, onPick) {
  const turns = node.children.map((child) => {
    const token = samples[child.members[0]].tokens[node.end];
    return `${child.members.map((i) => samples[i].name).join(", ")}: ${token ? Led.show(token.text) : "end"}`;
  });
  const label = `After token ${node.end}. ${turns.join("   ")}`;
  const mark = Led.svg("circle", { class: "fork", cx, cy, r: 4.5, tabindex: "0", role: "button", "aria-label": label, "data-at": node.end });
  mark.append(Led.svg("title", {}, label));
  const pick = () => onPick(node.children[0].members[0], node.end);
  mark.addEventListener("click", pick);
  mark.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick();
    }
  });
  return mark;
};

// "3 of 4 answers differ" and the first parting.
Led.parting = function (samples) {
  const { root } = Led.grow(samples);
  const distinct = (values) => new Set(values).size;
  const paths = distinct(samples.map((s) => s.tokens.map((t) => t.id).join()));
  const answers = distinct(samples.map(Led.answer).map((text) => (text.match(/-?\d+(?!.*\d)/s) || [text])[0]));
  if (!root.children.length) return "not at all: every token is the same";
  const where = root.end ? `after ${root.end} token${root.end > 1 ? "s" : ""}` : "from the first token on";
  return `${where} · ${paths} distinct path${paths > 1 ? "s" : ""} · ${answers} distinct answer${answers > 1 ? "s" : ""}`;
};
