// Opens pages in a real Chromium and says what is there: node page.js TOKEN FOLDER URL...
// Prints JSON: for each URL and colour scheme the title, what axe finds, what the console said, and whether it is wider than the window.
const fs = require("fs");
const path = require("path");
const tools = path.resolve(__dirname, "../../.tools/axe/node_modules");
const puppeteer = require(path.join(tools, "puppeteer-core"));
const axe = fs.readFileSync(path.join(tools, "axe-core/axe.min.js"), "utf8");

const [token, folder, ...urls] = process.argv.slice(2);

async function look(browser, url, scheme, number) {
  const page = await browser.newPage();
  const said = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width: scheme === "dark" ? 390 : 1100, height: 800 });
  if (token) await page.authenticate({ username: "lifeboat", password: token });
  // The page itself works without scripts; those of the test come after it.
  await page.setBypassCSP(true);
  await page.setJavaScriptEnabled(false);
  const answer = await page.goto(url, { waitUntil: "load" });
  await page.screenshot({ path: path.join(folder, `page-${number}-${scheme}.png`), fullPage: true });
  await page.setJavaScriptEnabled(true);
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const shape = await page.evaluate(() => ({
    text: document.body.innerText,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    scripts: document.scripts.length,
    ground: getComputedStyle(document.body).backgroundColor,
    charts: document.querySelectorAll("svg").length,
  }));
  await page.close();
  const violations = found.violations.map((v) => ({ id: v.id, where: v.nodes.map((n) => n.html) }));
  return { url, scheme, status: answer.status(), title: shape.title, checks: found.passes.length, violations, said, ...shape };
}

(async () => {
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    userDataDir: path.join(folder, "profile"),
  });
  const results = [];
  for (const [number, url] of urls.entries()) {
    for (const scheme of ["light", "dark"]) results.push(await look(browser, url, scheme, number));
  }
  await browser.close();
  console.log(JSON.stringify(results));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
