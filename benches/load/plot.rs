//! A run over time as a picture: panels one below the other over the same seconds, as SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 52.0;
const BOTTOM: f64 = 44.0;
/// Told apart without colour vision too.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
/// More points than this are not told apart on a screen.
const POINTS_MAX: usize = 600;

#[derive(Debug)]
pub struct Line {
    pub label: &'static str,
    /// Seconds and values, in order of time.
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug)]
pub struct Panel {
    pub title: &'static str,
    pub lines: Vec<Line>,
    /// Powers of ten at the same distance.
    pub is_logarithmic: bool,
    /// A line that must not be crossed.
    pub limit: Option<(&'static str, f64)>,
}

/// A stretch of time with a name.
#[derive(Debug)]
pub struct Band {
    pub label: &'static str,
    pub from: f64,
    pub to: f64,
}

#[derive(Debug)]
pub struct Plot {
    pub title: String,
    pub bands: Vec<Band>,
    pub panels: Vec<Panel>,
}

impl Plot {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        fs::write(file, self.svg()).with_context(|| file.display().to_string())
    }

    fn svg(&self) -> String {
        let height = TOP + self.panels.len() as f64 * (PANEL + GAP) - GAP + BOTTOM;
        let points = self
            .panels
            .iter()
            .flat_map(|panel| &panel.lines)
            .flat_map(|line| &line.points);
        let seconds = points.map(|point| point.0).fold(1.0, f64::max);
        let x = |at: f64| LEFT + at.clamp(0.0, seconds) / seconds * (WIDTH - LEFT - RIGHT);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"14\" font-weight=\"bold\">{}</text>\n",
            escaped(&self.title)
        );
        for band in &self.bands {
            let (from, to, bottom) = (x(band.from), x(band.to), height - BOTTOM - TOP);
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{bottom:.1}\" fill=\"#f3ecd2\"/>\
                 <text x=\"{:.1}\" y=\"44\" text-anchor=\"middle\" fill=\"#7a6a2a\">{}</text>",
                to - from,
                f64::midpoint(from, to),
                escaped(band.label)
            );
        }
        for (index, panel) in self.panels.iter().enumerate() {
            panel.draw(TOP + index as f64 * (PANEL + GAP), x, seconds, &mut out);
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">seconds</text>\n</svg>",
            WIDTH - RIGHT,
            height - 8.0
        );
        out
    }
}

impl Panel {
    fn draw(&self, top: f64, x: impl Fn(f64) -> f64, seconds: f64, out: &mut String) {
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
        let most = values().chain(self.limit.map(|limit| limit.1)).fold(0.0, f64::max);
        let scale = if self.is_logarithmic {
            Scale::logarithmic(values().filter(|value| *value > 0.0).fold(most, f64::min), most)
        } else {
            Scale::linear(most)
        };
        let y = |value: f64| top + PANEL * (1.0 - scale.share(value));
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{}</text>",
            top - 8.0,
            escaped(self.title)
        );
        for tick in &scale.ticks {
            let at = y(*tick);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                number(*tick)
            );
        }
        for tick in Scale::linear(seconds).ticks.into_iter().filter(|tick| *tick <= seconds) {
            let at = x(tick);
            let below = top + PANEL;
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {below:.1}v4\" stroke=\"#888\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                below + 17.0,
                number(tick)
            );
        }
        if let Some((_, limit)) = self.limit {
            let at = y(limit);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#b00\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>",
                WIDTH - RIGHT
            );
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<String> = thinned(&line.points)
                .map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value)))
                .collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                points.join(" ")
            );
        }
        let names = self.lines.iter().zip(COLOURS.iter().cycle().copied());
        let names = names.map(|(line, colour)| (line.label, colour));
        let names: Vec<_> = names.chain(self.limit.map(|limit| (limit.0, "#b00"))).collect();
        let mut right = WIDTH - RIGHT;
        for (name, colour) in names.into_iter().rev() {
            let _ = writeln!(
                out,
                "<text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
                top - 8.0,
                escaped(name)
            );
            right -= name.len() as f64 * 6.6 + 18.0;
        }
    }
}

/// Where values stand between bottom (0) and top (1).
struct Scale {
    ticks: Vec<f64>,
    from: f64,
    to: f64,
    is_logarithmic: bool,
}

impl Scale {
    fn linear(most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let power = 10_f64.powf((most / 4.0).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = steps.into_iter().find(|step| most / step <= 5.0).unwrap_or(most);
        let count = (most / step).ceil() as u32;
        Self {
            ticks: (0..=count).map(|n| f64::from(n) * step).collect(),
            from: 0.0,
            to: f64::from(count) * step,
            is_logarithmic: false,
        }
    }

    fn logarithmic(least: f64, most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let least = if least > 0.0 { least } else { most / 10.0 };
        let from = least.log10().floor();
        let to = most.log10().ceil().max(from + 1.0);
        Self {
            ticks: (from as i32..=to as i32).map(|power| 10_f64.powi(power)).collect(),
            from,
            to,
            is_logarithmic: true,
        }
    }

    fn share(&self, value: f64) -> f64 {
        let at = if self.is_logarithmic {
            if value <= 0.0 {
                return 0.0;
            }
            value.log10()
        } else {
            value
        };
        ((at - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// The largest of neighbours: what stands out stays.
fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    let together = points.len().div_ceil(POINTS_MAX).max(1);
    let largest = |chunk: &[(f64, f64)]| chunk.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    points.chunks(together).filter_map(largest)
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", short(v / 1e6)),
        v if v >= 1e4 => format!("{} k", short(v / 1e3)),
        v => short(v),
    }
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stands_inside_its_panel() {
        let line = |points| Line { label: "a < b", points };
        let plot = Plot {
            title: "test".into(),
            bands: vec![Band {
                label: "spike",
                from: 2.0,
                to: 4.0,
            }],
            panels: vec![
                Panel {
                    title: "linear",
                    lines: vec![line(
                        (0..5000).map(|n| (f64::from(n) / 500.0, f64::from(n % 77))).collect(),
                    )],
                    is_logarithmic: false,
                    limit: Some(("bound", 90.0)),
                },
                Panel {
                    title: "logarithmic",
                    lines: vec![line(vec![(0.0, 0.0), (1.0, 0.3), (10.0, 4000.0)])],
                    is_logarithmic: true,
                    limit: None,
                },
            ],
        };
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN") && !svg.contains("inf"));
        let mut lines = 0;
        for points in svg.split("points=\"").skip(1) {
            lines += 1;
            for point in points.split('"').next().unwrap().split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x) && y >= TOP, "{point}");
            }
        }
        assert_eq!(lines, 2);
        assert!(svg.len() < 60_000, "{}", svg.len());
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(Scale::linear(87.0).ticks, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(Scale::linear(0.0).ticks.last(), Some(&1.0));
        assert_eq!(Scale::logarithmic(0.3, 40.0).ticks, [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(Scale::logarithmic(0.3, 40.0).share(0.1), 0.0);
        assert_eq!([number(20_000.0), number(2e6), number(0.5)], ["20 k", "2 M", "0.5"]);
    }
}
