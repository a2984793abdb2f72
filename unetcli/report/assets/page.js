// The colour theme: that of the system, until the user chooses another with the button.
const byId = (id) => document.getElementById(id);

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function nameTheme() {
  const other = isDark() ? "light" : "dark";
  byId("theme").textContent = other === "dark" ? "Dark" : "Light";
  byId("theme").setAttribute("aria-label", `Change to ${other} colours`);
}

function remember(theme) {
  try { localStorage.setItem("unetcli-theme", theme); } catch { /* local files may have no storage */ }
}

function remembered() {
  try { return localStorage.getItem("unetcli-theme"); } catch { return null; }
}

function startTheme() {
  const theme = remembered();
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    const other = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = other;
    remember(other);
    nameTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();
}

startTheme();
