"use strict";
// The page: form, streams, keyboard, share link. Rendering is in view.js and paths.js.
(() => {
  const $ = (id) => document.getElementById(id);
  const FIELDS = { question: "q", temperature: "t", depth: "d", top_k: "k", n: "n", phase: "phase", seed: "seed", tokens: "max" };
  const SLIDERS = ["temperature", "depth", "top_k", "n"];
  const recording = $("recording") ? JSON.parse($("recording").textContent) : null;
  const state = { run: null, side: {}, isReady: false };

  // ---- the two sides ----
  class Side {
    constructor(name) {
      this.name = name;
      this.node = document.querySelector(`.side[data-side="${name}"]`);
      this.text = new Led.Text(this.node.querySelector(".tokens"), name);
      this.reset(1);
      this.text.box.addEventListener("keydown", (event) => this.walk(event));
      this.text.box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && this.open(event.target.closest(".t")));
      this.text.box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && !this.text.box.contains(document.activeElement) && hide());
      this.text.box.addEventListener("focusin", (event) => this.open(event.target.closest(".t")));
      this.text.box.addEventListener("focusout", hide);
      this.text.box.addEventListener("click", (event) => event.target.closest(".t")?.focus());
    }
    reset(n) {
      this.samples = Array.from({ length: n }, (_, i) => ({ side: this.name, name: `#${i + 1}`, tokens: [], end: null }));
      this.shown = 0;
      this.text.clear();
      this.node.querySelector(".applied").textContent = "";
      Led.summary(this.node.querySelector(".summary"), Led.figures(this.samples, this.name));
      this.tabs();
    }
    tabs() {
      const make = (sample, i) => {
        const tab = Led.el("button", { type: "button", "aria-pressed": String(i === this.shown), "data-sample": i }, sample.name);
        tab.addEventListener("click", () => this.show(i));
        return tab;
      };
      this.node.querySelector(".tabs").replaceChildren(...(this.samples.length > 1 ? this.samples.map(make) : []));
    }
    show(i, at) {
      this.shown = i;
      this.text.clear();
      this.samples[i].tokens.forEach((token) => this.text.push(token));
      this.tabs();
      if (at !== undefined) this.text.nodes[Math.min(at, this.text.nodes.length - 1)]?.focus();
    }
    take(event) {
      const sample = this.samples[event.i];
      if (!sample) return;
      if (event.error) throw new Error(event.error);
      if ("end" in event) {
        sample.end = event;
        if (event.params) this.applied(event.params);
        return;
      }
      sample.tokens.push(event);
      if (event.i === this.shown) this.text.push(event);
      soon();
    }
    applied(params) {
      const note = this.name === "led" ? `depth ${params.depth} · k ${params.top_k}` : `final layer · k ${params.top_k}`;
      this.node.querySelector(".applied").textContent = `${note}${params.phase === "all" ? " · everywhere" : ""}`;
    }
    open(node) {
      if (!node) return;
      this.text.nodes.forEach((other) => other.tabIndex === 0 && (other.tabIndex = -1));
      node.tabIndex = 0;
      const at = Number(node.dataset.at);
      reveal(node, this.text.tokens[at], at, this.name);
    }
    walk(event) {
      const nodes = this.text.nodes;
      const at = nodes.indexOf(event.target.closest(".t"));
      if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const next = this.next(event.key, at);
      if (next === null) return;
      event.preventDefault();
      nodes[next]?.focus();
    }
    next(key, at) {
      const { nodes, tokens } = this.text;
      const explored = (i) => (this.name === "led" ? tokens[i].explored : tokens[i].confidence !== null && tokens[i].confidence < 0.9);
      const seek = (step) => {
        for (let i = at + step; i >= 0 && i < nodes.length; i += step) if (explored(i)) return i;
        return at;
      };
      const row = (step) => {
        const from = nodes[at].getBoundingClientRect();
        for (let i = at + step; i >= 0 && i < nodes.length; i += step) {
          const box = nodes[i].getBoundingClientRect();
          if (Math.abs(box.top - from.top) > 8 && (step > 0 ? box.right > from.left : box.left <= from.left)) return i;
        }
        return at;
      };
      const moves = {
        ArrowRight: () => Math.min(at + 1, nodes.length - 1), ArrowLeft: () => Math.max(at - 1, 0),
        ArrowDown: () => row(1), ArrowUp: () => row(-1), Home: () => 0, End: () => nodes.length - 1,
        x: () => seek(1), X: () => seek(-1),
      };
      return moves[key] ? moves[key]() : null;
    }
  }

  // ---- the card ----
  function reveal(node, token, at, side) {
    const card = $("detail");
    document.querySelectorAll(".t.at").forEach((other) => other.classList.remove("at"));
    node.classList.add("at");
    card.replaceChildren(Led.detail(token, at, side));
    const isSheet = window.innerWidth <= 720;
    card.classList.toggle("sheet", isSheet);
    if (isSheet) {
      const close = Led.el("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
      close.addEventListener("pointerdown", (event) => { event.preventDefault(); hide(); });
      card.querySelector(".head").append(close);
    }
    card.hidden = false;
    node.setAttribute("aria-describedby", "detail");
    if (isSheet) {
      const over = node.getBoundingClientRect().bottom - (window.innerHeight - card.offsetHeight - 12);
      if (over > 0) window.scrollBy({ top: over });
    } else place(node, card);
  }
  function place(node, card) {
    const boxes = node.getClientRects();
    const box = boxes[boxes.length - 1] || node.getBoundingClientRect();
    const [width, height, gap] = [card.offsetWidth, card.offsetHeight, 8];
    const below = box.bottom + gap + height <= window.innerHeight || box.top < height + gap;
    const top = below ? Math.min(box.bottom + gap, window.innerHeight - height - gap) : box.top - gap - height;
    card.style.left = `${Math.max(gap, Math.min(box.left - 12, window.innerWidth - width - gap))}px`;
    card.style.top = `${Math.max(gap, top)}px`;
  }
  function hide() {
    $("detail").hidden = true;
    document.querySelectorAll(".t.at").forEach((node) => { node.classList.remove("at"); node.removeAttribute("aria-describedby"); });
  }

  // ---- drawing what is derived, once per frame ----
  let isQueued = false;
  function soon() {
    if (isQueued) return;
    isQueued = true;
    setTimeout(() => requestAnimationFrame(() => { isQueued = false; derive(); }), 80);
  }
  function derive() {
    const { led, plain } = state.side;
    for (const side of [led, plain]) Led.summary(side.node.querySelector(".summary"), Led.figures(side.samples, side.name));
    const hasTokens = [led, plain].some((side) => side.samples.some((sample) => sample.tokens.length));
    $("paths").hidden = !hasTokens;
    if (!hasTokens) return;
    const width = Math.max(280, $("trees").clientWidth);
    if (led.samples.length === 1) {
      const both = [{ ...led.samples[0], name: "LED" }, { ...plain.samples[0], name: "plain" }];
      const pick = (i, at) => [led, plain][i].show(0, at);
      $("trees").replaceChildren(Led.el("div", { class: "tree" }, Led.tree(both, width, pick)));
      $("paths-note").textContent = Led.parting(both);
      return;
    }
    $("paths-note").textContent = "";
    $("trees").replaceChildren(...[led, plain].map((side) => {
      const title = Led.el("h3", {}, side.name === "led" ? "LED" : "Plain sampling", Led.el("span", {}, Led.parting(side.samples)));
      return Led.el("div", { class: `tree ${side.name}` }, title, Led.tree(side.samples, width, (i, at) => side.show(i, at)));
    }));
  }

  // ---- running ----
  function ask(side) {
    return {
      messages: [{ role: "user", content: $("question").value }],
      sampling: { temperature: Number($("temperature").value), max_new_tokens: Number($("tokens").value) },
      led: { depth: Number($("depth").value), top_k: Number($("top_k").value), phase: $("phase").value },
      seed: Number($("seed").value), n: Number($("n").value), side,
    };
  }
  function headers() {
    return { "content-type": "application/json", ...($("key").value ? { authorization: `Bearer ${$("key").value}` } : {}) };
  }
  class Refused extends Error {}
  async function reach(path, options) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it running?");
    }
    if (response.status === 401 || response.status === 403) {
      $("key-field").hidden = false;
      $("key").focus();
      throw new Refused("This server wants an API key: enter it beside the seed.");
    }
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new Refused(body?.error?.message || `The server answered ${response.status}.`);
    }
    return response;
  }
  async function follow(side, signal) {
    const response = await reach("stream", { method: "POST", body: JSON.stringify(ask(side.name)), signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new Error("The connection was cut. What had arrived is kept.");
      }
      if (part.done) throw new Error("The connection ended early. What had arrived is kept.");
      const lines = (rest + part.value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) side.take(JSON.parse(line.slice(6)));
      }
    }
  }
  async function run() {
    if (state.run || !$("question").reportValidity()) return;
    if (!state.isReady && !(await prepare())) return;
    const control = new AbortController();
    state.run = control;
    quiet();
    hide();
    history.replaceState(null, "", link());
    $("intro").hidden = true;
    $("results").hidden = $("legend").hidden = false;
    const sides = Object.values(state.side);
    sides.forEach((side) => side.reset(Number($("n").value)));
    busy(true);
    try {
      await Promise.all(sides.map((side) => follow(side, control.signal)));
      const figures = Led.figures(state.side.led.samples, "led");
      say(`Done. ${figures.tokens} tokens with LED, ${figures.explored} explored.`);
    } catch (error) {
      if (control.signal.aborted) say("Stopped.");
      else fail(error, run);
      control.abort();
    } finally {
      state.run = null;
      busy(false);
      derive();
    }
  }
  function busy(isBusy) {
    $("run").disabled = isBusy;
    $("stop").hidden = !isBusy;
    document.body.classList.toggle("running", isBusy);
    if (isBusy) say("Running.");
    else if (document.activeElement === document.body) $("run").focus({ preventScroll: true });
  }
  function say(text) { $("status").textContent = text; }
  function fail(error, again) {
    $("alert-text").textContent = error.message;
    $("alert").hidden = false;
    $("retry").hidden = error instanceof Refused && error.message.startsWith("custom_params");
    $("retry").onclick = () => { quiet(); again(); };
    say("");
  }
  function quiet() { $("alert").hidden = true; }

  // ---- settings ----
  function label() {
    for (const name of SLIDERS) document.querySelector(`output[for="${name}"]`).textContent = name === "temperature" ? Number($(name).value).toFixed(2) : $(name).value;
  }
  function link() {
    const values = Object.entries(FIELDS).map(([id, key]) => [key, $(id).value]);
    return `${location.pathname}${location.search}#${new URLSearchParams(values)}`;
  }
  function restore() {
    const values = new URLSearchParams(location.hash.slice(1));
    for (const [id, key] of Object.entries(FIELDS)) if (values.has(key)) $(id).value = values.get(key);
    label();
    return values.has("q");
  }
  async function share() {
    history.replaceState(null, "", link());
    try {
      await navigator.clipboard.writeText(location.href);
      $("share").textContent = "Copied";
    } catch {
      $("share").textContent = "In the address bar";
    }
    setTimeout(() => ($("share").textContent = "Copy link"), 1800);
  }
  async function prepare() {
    try {
      const setup = await (await reach("setup", {})).json();
      $("model").textContent = setup.model;
      $("model").hidden = false;
      $("depth").max = setup.limits.depth;
      $("top_k").max = Math.min(32, setup.limits.top_k);
      $("n").max = setup.limits.n;
      $("tokens").max = setup.context;
      for (const name of ["depth", "top_k", "phase"]) $(name).value = setup.defaults[name];
      $("examples").replaceChildren(...setup.examples.map((text) => {
        const button = Led.el("button", { type: "button" }, text);
        button.addEventListener("click", () => { $("question").value = text; run(); });
        return button;
      }));
      if (!restore() && !$("question").value) $("question").value = setup.examples[0];
      label();
      state.isReady = true;
      quiet();
    } catch (error) {
      fail(error, prepare);
    }
    return state.isReady;
  }

  // ---- theme ----
  function theme(name) { document.documentElement.dataset.theme = name; }
  function remembered() { try { return localStorage.getItem("led-theme"); } catch { return null; } }
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  theme(remembered() || (prefersDark.matches ? "dark" : "light"));
  prefersDark.addEventListener("change", () => remembered() || theme(prefersDark.matches ? "dark" : "light"));

  // ---- a recorded run, in a file of its own ----
  function replay() {
    for (const id of ["ask", "intro", "share"]) $(id).hidden = true;
    for (const id of ["results", "legend", "recorded"]) $(id).hidden = false;
    $("model").textContent = recording.model;
    $("model").hidden = false;
    $("recorded").append(Led.el("p", {}, recording.question), Led.el("p", {}, recording.note));
    document.title = `LED: ${recording.question.slice(0, 60)}`;
    for (const side of Object.values(state.side)) {
      const events = recording.sides[side.name];
      side.reset(1 + Math.max(0, ...events.map((event) => event.i)));
      events.forEach((event) => side.take(event));
    }
    derive();
  }

  state.side = { led: new Side("led"), plain: new Side("plain") };
  SLIDERS.forEach((name) => $(name).addEventListener("input", label));
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("ask").addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && (event.preventDefault(), run()));
  $("stop").addEventListener("click", () => state.run?.abort());
  $("share").addEventListener("click", share);
  $("theme").addEventListener("click", () => {
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("led-theme", document.documentElement.dataset.theme); } catch { /* private window */ }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  window.addEventListener("resize", () => { hide(); soon(); });
  window.addEventListener("scroll", () => window.innerWidth > 720 && !$("detail").hidden && document.querySelector(".t.at") && place(document.querySelector(".t.at"), $("detail")), { passive: true });
  window.addEventListener("hashchange", restore);
  label();
  if (recording) replay();
  else prepare();
})();
