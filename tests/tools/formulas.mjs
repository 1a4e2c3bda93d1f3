// Every formula of docs/ and README.md through KaTeX: prints file:line of each that does not parse, exit code 1.
// node tests/tools/formulas.mjs [FILES]; katex is installed under .katex/ by `make formulas`.
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";

const katex = createRequire(new URL("../../.katex/package.json", import.meta.url))("katex");
const root = new URL("../../", import.meta.url);
const files = process.argv.length > 2 ? process.argv.slice(2)
  : ["README.md", ...readdirSync(new URL("docs/", root), { recursive: true }).filter(f => f.endsWith(".md")).map(f => "docs/" + f)];

let count = 0, faults = 0;

function fault(file, line, formula, why) {
  faults += 1;
  console.log(`${file}:${line}: ${why}: ${formula.trim().replace(/\s+/g, " ").slice(0, 80)}`);
}

function check(file, line, formula, displayMode) {
  count += 1;
  // Markdown reads \, as an escaped comma before any formula is seen, and a bare < as the start of a tag
  const eaten = formula.match(/\\[^A-Za-z\s]/);
  if (eaten && eaten[0] !== "\\\\") fault(file, line, formula, `${eaten[0]} is eaten by Markdown; use a word such as \\lbrace`);
  if (!displayMode && /^\s|\s$/.test(formula)) fault(file, line, formula, "a space inside the dollar signs");
  try {
    katex.renderToString(formula, { displayMode, throwOnError: true, strict: "error" });
  } catch (e) {
    fault(file, line, formula, e.message.split("\n")[0]);
  }
}

for (const file of files) {
  const text = readFileSync(new URL(file, root), "utf8")
    .replace(/^(```|~~~)[\s\S]*?^\1$/gm, m => m.replace(/[^\n]/g, " "))      // code blocks hold no formulas,
    .replace(/^ {4,}.*$/gm, m => " ".repeat(m.length))                       // nor do indented ones
    .replace(/`[^`\n]*`/g, m => " ".repeat(m.length));
  const lineOf = index => text.slice(0, index).split("\n").length;
  const rest = text.replace(/^\$\$\n([\s\S]*?)^\$\$$/gm, (m, formula, index) => {
    check(file, lineOf(index), formula, true);
    return m.replace(/[^\n]/g, " ");
  });
  if (rest.includes("$$")) fault(file, lineOf(rest.indexOf("$$")), "$$", "a display must have $$ alone on its lines");
  const last = rest.replace(/\$([^$]+?)\$/g, (m, formula, index) => {
    if (/\n\s*\n/.test(formula)) fault(file, lineOf(index), formula, "a dollar sign without a partner");
    else check(file, lineOf(index), formula, false);
    return m.replace(/[^\n]/g, " ");
  });
  if (last.includes("$")) fault(file, lineOf(last.indexOf("$")), "$", "a dollar sign without a partner");
}
console.log(`${count} formulas in ${files.length} files, ${faults} faults`);
process.exit(faults ? 1 : 0);
