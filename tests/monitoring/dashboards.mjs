// node dashboards.mjs SCHEMA.json FOLDER: every dashboard in FOLDER is what Grafana's own types say, its panels' options
// too. With --self-test each mistake below has to be found.
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import Ajv from 'ajv';

const [schemaFile, folder, selfTest] = process.argv.slice(2);
const schema = JSON.parse(readFileSync(schemaFile));
const ajv = new Ajv({ allErrors: true, strict: false });
const validators = {};
for (const kind of ['dashboard', 'stat', 'table', 'timeseries']) {
  const shipped = schema.definitions?.Shipped ?? schema;
  // Grafana writes only the options that differ from its defaults.
  const wanted = { ...shipped.properties[kind] };
  if (kind !== 'dashboard') delete wanted.required;
  validators[kind] = ajv.compile({ ...wanted, definitions: schema.definitions });
}

function problemsOf(dashboard) {
  const problems = [];
  const check = (kind, value, where) => {
    if (validators[kind](value)) return;
    for (const e of validators[kind].errors) {
      problems.push(`${where}${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
    }
  };
  check('dashboard', dashboard, '');
  const ids = new Set();
  for (const panel of dashboard.panels ?? []) {
    if (ids.has(panel.id)) problems.push(`panel id ${panel.id} is there twice`);
    ids.add(panel.id);
    if (!(panel.type in validators) || panel.type === 'dashboard') problems.push(`panel type ${panel.type}`);
    else check(panel.type, panel.options, `${panel.title}: options`);
    for (const target of panel.targets ?? []) if (!target.expr) problems.push(`${panel.title}: a target without query`);
  }
  return problems;
}

const mistakes = [
  (d) => { d.panels[0].gridPos = { x: 0, y: 0 }; },
  (d) => { d.panels[0].unknown = 1; },
  (d) => { d.panels[1].id = d.panels[0].id; },
  (d) => { d.panels[0].options.colorMode = d.panels[0].options.tooltip = 'rainbow'; },
  (d) => { d.templating.list[0].current = {}; },
  (d) => { d.templating.list[1].type = 'prometheus'; },
  (d) => { d.time.from = 6; },
  (d) => { d.panels[0].fieldConfig.defaults.thresholds.mode = 'relative'; },
];

let found = 0;
for (const name of readdirSync(folder).filter((n) => n.endsWith('.json'))) {
  const text = readFileSync(join(folder, name), 'utf-8');
  if (selfTest) {
    mistakes.forEach((make, i) => {
      const dashboard = JSON.parse(text);
      make(dashboard);
      if (problemsOf(dashboard).length === 0) { console.log(`${name}: mistake ${i} is not found`); process.exitCode = 1; }
    });
    continue;
  }
  const dashboard = JSON.parse(text);
  for (const problem of problemsOf(dashboard)) { console.log(`${name}: ${problem}`); process.exitCode = 1; }
  found += dashboard.panels.length;
}
if (!selfTest && found < 20) { console.log(`only ${found} panels were found`); process.exitCode = 1; }
