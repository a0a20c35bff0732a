// Draws a dashboard's JSON with Grafana's own components and its own transformations, from answers that render.py put
// into the page. @grafana/ui has no heat map and no XY chart, and its table does not survive
// bundling: those three are drawn here, with Grafana's transformations, units and colours alone.
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import {
  applyFieldOverrides, createTheme, dateTime, FieldColorModeId, FieldType, getDisplayProcessor, standardTransformers,
  standardTransformersRegistry, ThresholdsMode, toDataFrame, transformDataFrame, type DataFrame, type Field,
} from '@grafana/data';
import {
  BarGauge, BigValue, BigValueColorMode, BigValueGraphMode, GlobalStyles, PanelChrome, ThemeContext, TimeSeries,
} from '@grafana/ui';

type Sample = { metric: Record<string, string>; values: [number, string][] };
type Answer = { refId: string; legend: string; table: boolean; result: Sample[] };
const { BOARD, ANSWERS, FROM, TO } = window as any as { BOARD: any; ANSWERS: Record<number, Answer[]>; FROM: number; TO: number };

const theme = createTheme({ colors: { mode: 'dark' } });
const timeRange: any = { from: dateTime(FROM * 1000), to: dateTime(TO * 1000), raw: { from: 'now-1h', to: 'now' } };
const COLUMN = 1440 / 24, ROW = 36, TOP = 56;
standardTransformersRegistry.setInit(() =>
  [...new Map(Object.values(standardTransformers).map((t: any) => [t.id, t])).values()]  // old names of some are listed too
    .map((t) => ({ id: t.id, name: t.name, transformation: t, editor: () => null } as any)));

const named = (legend: string, labels: Record<string, string>) =>
  legend ? legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '') : JSON.stringify(labels);

// One frame a series, as Grafana's Prometheus data source makes them.
const seriesFrames = (answers: Answer[]): DataFrame[] =>
  answers.flatMap((answer) => answer.result.map((sample) => toDataFrame({
    refId: answer.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: sample.values.map(([time]) => time * 1000) },
      { name: 'Value', type: FieldType.number, labels: sample.metric, values: sample.values.map(([, value]) => parseFloat(value)),
        config: { displayNameFromDS: named(answer.legend, sample.metric) } },
    ],
  })));

// One frame a query, a column a label.
const tableFrames = (answers: Answer[]): DataFrame[] =>
  answers.map((answer) => {
    const labels = [...new Set(answer.result.flatMap((sample) => Object.keys(sample.metric)))].sort();
    const last = answer.result.map((sample) => sample.values[sample.values.length - 1]);
    return toDataFrame({
      refId: answer.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: last.map(([time]) => time * 1000) },
        ...labels.map((label) => ({ name: label, type: FieldType.string, values: answer.result.map((sample) => sample.metric[label] ?? '') })),
        { name: answers.length > 1 ? `Value #${answer.refId}` : 'Value', type: FieldType.number, values: last.map(([, value]) => parseFloat(value)) },
      ],
    });
  });

function displayed(panel: any, frames: DataFrame[]): DataFrame[] {
  const defaults = {
    color: { mode: FieldColorModeId.PaletteClassic },
    thresholds: { mode: ThresholdsMode.Absolute, steps: [{ value: -Infinity, color: 'green' }] },
    ...(panel.fieldConfig?.defaults ?? {}),
  };
  if (panel.type === 'stat') defaults.color = { mode: FieldColorModeId.Thresholds };
  const steps = defaults.thresholds.steps.map((step: any) => ({ ...step, value: step.value ?? -Infinity }));
  defaults.thresholds = { ...defaults.thresholds, steps };
  const out = applyFieldOverrides({
    data: frames, fieldConfig: { defaults, overrides: panel.fieldConfig?.overrides ?? [] },
    replaceVariables: (text: string) => text, theme, timeZone: 'utc',
  } as any);
  out.forEach((frame, index) => frame.fields.forEach((field: any) => {
    field.config = { ...defaults, ...field.config };
    for (const { matcher, properties } of panel.fieldConfig?.overrides ?? []) {  // applyFieldOverrides knows those of plug-ins alone
      if (matcher.id === 'byName' && [field.name, field.config.displayName].includes(matcher.options)) {
        properties.forEach(({ id, value }: any) => { field.config[id] = value; });
      }
    }
    field.state = { ...(field.state ?? {}), seriesIndex: index };
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
  }));
  return out;
}

const lastOf = (field: Field) => [...field.values].reverse().find((value) => value != null && !Number.isNaN(value));

// Values of all series as cells: a row for each, time to the right, dark where it is high.
function Heat({ frames, width, height }: { frames: DataFrame[]; width: number; height: number }) {
  const left = 190, all = frames.flatMap((frame) => [...frame.fields[1].values]).filter((v) => !Number.isNaN(v));
  const high = Math.max(...all), low = Math.min(...all), tall = (height - 24) / frames.length;
  return <svg width={width} height={height}>{frames.map((frame, row) => {
    const { values: times } = frame.fields[0], { values } = frame.fields[1];
    return <g key={row}>
      <text x={8} y={row * tall + tall / 2 + 4} fill={theme.colors.text.secondary} fontSize={12}>{frame.fields[1].config.displayNameFromDS}</text>
      {[...values].map((value, i) => {
        const x = left + ((times[i] / 1000 - FROM) / (TO - FROM)) * (width - left - 8);
        return <rect key={i} x={x} y={row * tall + 2} width={(width - left) / 120 + 1} height={tall - 4}
          fill={`hsl(26, 90%, ${85 - 60 * ((value - low) / (high - low || 1))}%)`} />;
      })}
    </g>;
  })}<text x={left} y={height - 6} fill={theme.colors.text.secondary} fontSize={12}>{low.toFixed(3)} to {high.toFixed(3)} s</text></svg>;
}

function Curve({ panel, frame, width, height }: { panel: any; frame: DataFrame; width: number; height: number }) {
  const { x, y } = panel.options.series[0], field = (name: string) => frame.fields.find((f) => f.name === name || f.config.displayName === name)!;
  const xs = [...field(x).values] as number[], ys = [...field(y).values] as number[];
  const show = (f: Field, value: number) => { const d = f.display!(value); return d.text + (d.suffix ?? ''); };
  const px = (v: number) => 60 + ((v - 0) / (Math.max(...xs) * 1.08)) * (width - 80);
  const bottom = Math.min(...ys) - 0.05, top = Math.max(...ys) + 0.05, py = (v: number) => height - 40 - ((v - bottom) / (top - bottom)) * (height - 70);
  return <svg width={width} height={height} fontSize={12} fill={theme.colors.text.secondary}>
    <polyline points={xs.map((v, i) => `${px(v)},${py(ys[i])}`).join(' ')} fill="none" stroke="#73BF69" strokeWidth={2} />
    {xs.map((v, i) => <g key={i}><circle cx={px(v)} cy={py(ys[i])} r={4} fill="#73BF69" />
      <text x={px(v)} y={py(ys[i]) - 10} textAnchor="middle">{show(field(y), ys[i])}</text>
      <text x={px(v)} y={height - 20} textAnchor="middle">{show(field(x), v)}</text></g>)}
    <text x={width / 2} y={height - 4} textAnchor="middle">{x}</text><text x={8} y={16}>{y}</text>
  </svg>;
}

function Rows({ frame }: { frame: DataFrame }) {
  const cell: React.CSSProperties = { textAlign: 'left', padding: '6px 10px', borderBottom: `1px solid ${theme.colors.border.weak}` };
  const text = (field: Field, row: number) => {
    const shown = field.display!(field.values[row]);
    return (shown.prefix ?? '') + shown.text + (shown.suffix ?? '');
  };
  return <table style={{ width: '100%', fontSize: 13 }}>
    <thead><tr>{frame.fields.map((f, i) => <th key={i} style={cell}>{f.config.displayName ?? f.name}</th>)}</tr></thead>
    <tbody>{[...Array(frame.length).keys()].map((row) => <tr key={row}>{frame.fields.map((f, i) => <td key={i} style={cell}>{text(f, row)}</td>)}</tr>)}</tbody>
  </table>;
}

function Body({ panel, frames, width, height }: { panel: any; frames: DataFrame[]; width: number; height: number }) {
  if (!frames.length || !frames[0].length) return <div style={{ padding: 16, color: theme.colors.text.secondary }}>No data</div>;
  if (panel.type === 'stat') {
    const value = frames[0].fields[1];
    return <BigValue theme={theme} width={width} height={height} value={value.display!(lastOf(value))} colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.Area} sparkline={{ y: value, x: frames[0].fields[0] } as any} />;
  }
  if (panel.type === 'bargauge') {
    const each = Math.min(44, height / frames.length), values = frames.map((frame) => lastOf(frame.fields[1]));
    const bounds = { min: Math.min(0, ...values), max: Math.max(...values, 1e-9) };
    return <div style={{ padding: '0 8px' }}>{frames.map((frame, i) => {
      const field = frame.fields[1], config = { ...field.config, ...bounds };
      return <div key={i} style={{ height: each }}><BarGauge theme={theme} width={width - 16} height={each - 6} field={config as any}
        value={{ ...field.display!(values[i]), title: field.config.displayNameFromDS }} display={field.display}
        orientation={'horizontal' as any} displayMode={'gradient' as any} itemSpacing={4} lcdCellWidth={8} /></div>;
    })}</div>;
  }
  if (panel.type === 'table') return <Rows frame={frames[0]} />;
  if (panel.type === 'heatmap') return <Heat frames={frames} width={width} height={height} />;
  if (panel.type === 'xychart') return <Curve panel={panel} frame={frames[0]} width={width} height={height} />;
  return <TimeSeries frames={frames} structureRev={1} timeRange={timeRange} timeZone="utc" width={width} height={height} options={{} as any}
    legend={{ ...panel.options?.legend, displayMode: 'list', placement: 'bottom', calcs: [], showLegend: true }} />;
}

class Fault extends React.Component<React.PropsWithChildren<{}>, { error?: Error }> {
  state: { error?: Error } = {};
  static getDerivedStateFromError(error: Error) { return { error }; }
  render() { return this.state.error ? <pre className="fault">{String(this.state.error.stack).slice(0, 500)}</pre> : this.props.children; }
}

function Panel({ panel, frames }: { panel: any; frames: DataFrame[] }) {
  const { x, y, w, h } = panel.gridPos, width = w * COLUMN - 8, height = h * ROW - 8;
  const style: React.CSSProperties = { position: 'absolute', left: x * COLUMN + 4, top: TOP + y * ROW, width, height };
  if (panel.type === 'row') return <div style={{ ...style, fontWeight: 500, fontSize: 16, paddingTop: 6 }}>{panel.title}</div>;
  return <div style={style}><PanelChrome title={panel.title} width={width} height={height} padding="none">
    {(w: number, h: number) => <Fault><Body panel={panel} frames={frames} width={w} height={h} /></Fault>}
  </PanelChrome></div>;
}

function Board() {
  const [frames, setFrames] = useState<DataFrame[][]>();
  useEffect(() => {
    Promise.all(BOARD.panels.map(async (panel: any, index: number) => {
      const answers = ANSWERS[index] ?? [], asTable = answers.some((answer) => answer.table);
      const made = asTable ? tableFrames(answers) : seriesFrames(answers);
      const changed = panel.transformations ? await lastValueFrom(transformDataFrame(panel.transformations, made)) : made;
      return displayed(panel, changed);
    })).then(setFrames);
  }, []);
  useEffect(() => { if (frames) document.body.dataset.drawn = 'true'; }, [frames]);
  const height = TOP + Math.max(...BOARD.panels.map((panel: any) => panel.gridPos.y + panel.gridPos.h)) * ROW + 8;
  return <ThemeContext.Provider value={theme}><GlobalStyles />
    <div style={{ position: 'relative', width: 1440, height, background: theme.colors.background.canvas, color: theme.colors.text.primary }}>
      <h3 style={{ padding: '12px 8px' }}>{BOARD.title}</h3>
      {frames && BOARD.panels.map((panel: any, index: number) => <Panel key={index} panel={panel} frames={frames[index]} />)}
    </div></ThemeContext.Provider>;
}

createRoot(document.getElementById('root')!).render(<Board />);
