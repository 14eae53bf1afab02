"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"], signs = { auto: "◐", light: "○", dark: "●" };
  let kept = null;
  try { kept = localStorage.getItem("foresight-theme"); } catch { /* a page from disk may have no storage */ }
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `${signs[theme]} ${theme}`;
    button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
    try { localStorage.setItem("foresight-theme", theme); } catch { /* then it lasts as long as the page */ }
  };
  let theme = themes.includes(kept) ? kept : "auto";
  show(theme);
  button.addEventListener("click", () => { theme = themes[(themes.indexOf(theme) + 1) % themes.length]; show(theme); });
  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("button[data-copy]");
    if (!copy) return;
    const text = copy.dataset.copy, before = copy.textContent;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); copy.focus();
    }
    copy.textContent = "copied"; setTimeout(() => { copy.textContent = before; }, 1200);
  });
})();
