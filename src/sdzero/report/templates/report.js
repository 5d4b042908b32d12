"use strict";
// The token view. What models wrote is put in as text only (textContent), never as markup.
(() => {
  const PER_PAGE = 50, PEAKS = 10, NATS = 1000, PROBABILITY = 10000, FULL_SHADE = 2;
  const box = (id) => document.getElementById(id);
  if (!box("responses")) return;
  const data = JSON.parse(box("data").textContent);
  const all = data.responses;
  let found = all, page = 0, chosen = null, asked = 0;

  const make = (name, words, attributes = {}) => {
    const own = document.createElement(name);
    if (words !== undefined) own.textContent = words;
    for (const [key, value] of Object.entries(attributes)) own.setAttribute(key, value);
    return own;
  };
  const visible = (text) => text === "" ? "∅" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·");
  const percent = (value) => value < 1 ? "< 0.01%" : `${(value * 100 / PROBABILITY).toFixed(value < 100 ? 2 : 1)}%`;
  const title = (one) => `${one.run ? one.run + ": " : ""}${one.q}`;

  const unpacked = async (one) => {
    if (one.unpacked) return one.unpacked;
    if (typeof DecompressionStream === "undefined") {
      throw new Error("This browser cannot inflate the page's data; it needs a version of 2023 or later.");
    }
    const bytes = Uint8Array.from(atob(one.z), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    one.unpacked = JSON.parse(await new Response(stream).text());
    return one.unpacked;
  };

  // ---- the list ----

  const drawList = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const items = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map((one) => {
      const button = make("button", title(one), { type: "button" });
      button.append(make("small", `${one.v}, ${one.s.toFixed(2)} nats in ${one.n} tokens, at most ${one.m.toFixed(2)}`));
      if (one === chosen) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => choose(one, button));
      const item = make("li");
      item.append(button);
      return item;
    });
    box("responses").replaceChildren(...items);
    box("page-number").textContent = `page ${page + 1} of ${pages}`;
    box("page-back").disabled = page === 0;
    box("page-on").disabled = page === pages - 1;
    box("found").textContent = `${found.length} of ${all.length} responses`;
  };
  const filter = () => {
    const verdict = box("filter-verdict").value, run = box("filter-run").value;
    const text = box("filter-text").value.toLowerCase();
    found = all.filter((one) => (!verdict || one.v === verdict) && (!run || one.run === run)
      && (!text || `${one.q} ${one.x}`.toLowerCase().includes(text)));
    page = 0;
    drawList();
  };

  // ---- one response, and beside it one of the other verdict to the same question ----

  const choose = async (one, button) => {
    chosen = one;
    for (const other of box("responses").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    if (button) button.setAttribute("aria-current", "true");
    const own = ++asked;
    const partner = all.find((other) => other.q === one.q && other.run === one.run && other.r !== one.r);
    const shown = [one, ...(partner ? [partner] : [])];
    try {
      await Promise.all(shown.map(unpacked));
    } catch (error) {
      box("shown").replaceChildren(make("p", error.message));
      return;
    }
    if (own !== asked) return; // another one was chosen meanwhile
    box("detail").replaceChildren(make("p", "Choose a token.", { class: "quiet" }));
    box("shown").replaceChildren(...shown.map(drawResponse));
  };
  const drawResponse = (one) => {
    const packed = one.unpacked, article = make("article", undefined, { class: "response" });
    article.append(make("h3", `${title(one)}: ${one.v}`));
    article.append(make("div", one.x, { class: "question quiet", tabindex: "0", role: "group", "aria-label": "Question" }));
    const sequence = make("div", undefined, {
      class: "sequence", role: "listbox", "aria-orientation": "horizontal", "aria-label": `Tokens of the response to ${title(one)}, ${one.v}`,
    });
    const order = packed.d.map((_, place) => place).sort((a, b) => packed.d[b] - packed.d[a] || a - b);
    const peaks = order.slice(0, PEAKS).sort((a, b) => a - b);
    const tokens = packed.t.map((text, place) => {
      const token = make("span", data.vocabulary[text], { class: "token", role: "option", tabindex: "-1", "aria-selected": "false" });
      if (data.vocabulary[text].trim() === "") token.setAttribute("aria-label", visible(data.vocabulary[text]));
      token.style.setProperty("--shade", Math.min(1, packed.d[place] / NATS / FULL_SHADE).toFixed(3));
      token.dataset.place = place;
      return token;
    });
    let current = order.length ? order[0] : 0;
    if (tokens.length) tokens[current].tabIndex = 0;
    const select = (place, focus) => {
      tokens[current].tabIndex = -1;
      for (const other of box("shown").querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
      current = place;
      tokens[current].tabIndex = 0;
      tokens[current].setAttribute("aria-selected", "true");
      if (focus) tokens[current].focus();
      drawDetail(one, place);
    };
    sequence.addEventListener("focusin", (event) => {
      const place = Number(event.target.dataset.place);
      if (!Number.isNaN(place)) select(place, false);
    });
    sequence.addEventListener("mouseover", (event) => {
      const place = Number(event.target.dataset.place);
      if (!Number.isNaN(place)) select(place, false);
    });
    sequence.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const last = tokens.length - 1;
      const target = {
        ArrowRight: Math.min(current + 1, last), ArrowDown: Math.min(current + 1, last),
        ArrowLeft: Math.max(current - 1, 0), ArrowUp: Math.max(current - 1, 0), Home: 0, End: last,
        n: peaks.find((place) => place > current) ?? peaks[0],
        p: peaks.findLast((place) => place < current) ?? peaks[peaks.length - 1],
      }[event.key];
      if (target === undefined) return;
      event.preventDefault();
      select(target, true);
    });
    sequence.append(...tokens);
    article.append(sequence, make("p", `Control phrase: ${data.phrases[one.p]}`, { class: "quiet phrase" }));
    return article;
  };

  // ---- the alternatives at one token ----

  const drawDetail = (one, place) => {
    const packed = one.unpacked;
    const parts = [make("p", `Token ${place + 1} of ${packed.t.length}, “${visible(data.vocabulary[packed.t[place]])}”: `
      + `${(packed.d[place] / NATS).toFixed(3)} nats. Its probability: student ${percent(packed.s.t[place])}, `
      + `Reviser ${percent(packed.r.t[place])}.`)];
    for (const [name, side] of [["Student", packed.s], ["Reviser", packed.r]]) {
      const table = make("table"), body = make("tbody"), head = make("tr");
      head.append(make("th", "token", { scope: "col" }), make("th", "probability", { scope: "col" }));
      const top = make("thead");
      top.append(head);
      const flat = side.a[place];
      for (let index = 0; index < flat.length; index += 2) {
        const row = make("tr");
        row.append(make("th", visible(data.vocabulary[flat[index]]), { scope: "row" }), make("td", percent(flat[index + 1])));
        body.append(row);
      }
      table.append(make("caption", `${name} would write`), top, body);
      parts.push(table);
    }
    box("detail").replaceChildren(...parts);
  };

  // ---- start ----

  const fill = (id, values) => box(id).append(...values.map((value) => make("option", value, { value })));
  fill("filter-verdict", [...new Set(all.map((one) => one.v))].sort());
  const runs = [...new Set(all.map((one) => one.run))].filter((name) => name);
  fill("filter-run", runs);
  box("filter-run-label").hidden = runs.length < 2;
  for (const id of ["filter-verdict", "filter-run"]) box(id).addEventListener("change", filter);
  box("filter-text").addEventListener("input", filter);
  box("filters").addEventListener("submit", (event) => event.preventDefault());
  box("page-back").addEventListener("click", () => { page -= 1; drawList(); });
  box("page-on").addEventListener("click", () => { page += 1; drawList(); });
  drawList();
  if (all.length) choose(all[0], box("responses").querySelector("button"));
})();
