//! Usage per day as an SVG: bars stacked by token class. Its colours are the style sheet's.

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Color, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend,
};

/// Width and height, in the SVG's own units.
const SIZE: (u32, u32) = (900, 260);
/// Colours of the classes in the order of `TokenClass::ALL`, which the style sheet replaces in the dark.
const COLOURS: [RGBColor; 4] =
    [RGBColor(37, 99, 235), RGBColor(147, 197, 253), RGBColor(5, 150, 105), RGBColor(217, 119, 6)];
const AXIS: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);

/// What was used on one day, by class in the order of `TokenClass::ALL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Day {
    /// As the axis shows it.
    pub(super) label: String,
    pub(super) tokens: [u64; 4],
}

/// What can go wrong while drawing into memory.
type DrawError = DrawingAreaErrorKind<<SVGBackend<'static> as plotters::prelude::DrawingBackend>::ErrorType>;

/// Draws the days beside each other.
pub(super) fn svg(days: &[Day]) -> Result<String, DrawError> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, days)?;
        area.present()?;
    }
    Ok(text)
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, days: &[Day]) -> Result<(), DrawError> {
    let count = i32::try_from(days.len()).unwrap_or(i32::MAX).max(1);
    let total = |day: &Day| day.tokens.iter().fold(0u64, |sum, tokens| sum.saturating_add(*tokens));
    let highest = days.iter().map(total).max().unwrap_or_default().max(1);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(-5..count.saturating_mul(10) - 5, 0u64..highest.saturating_add(highest / 10).max(2))?;
    // A day is ten wide, its bar in the middle of it, above its label.
    let label = |x: &i32| match usize::try_from(x / 10) {
        Ok(day) if x % 10 == 0 => days.get(day).map(|day| day.label.clone()),
        _ => None,
    };
    let font = ("sans-serif", 15).into_font().color(&AXIS);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(GRID.mix(0.0))
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .x_labels(days.len().clamp(2, 16))
        .x_label_formatter(&|x| label(x).unwrap_or_default())
        .y_labels(5)
        .y_label_formatter(&|tokens| short(*tokens))
        .label_style(font)
        .draw()?;
    for (at, day) in (0..count).zip(days) {
        let mut below = 0u64;
        for (tokens, colour) in day.tokens.iter().zip(COLOURS) {
            let above = below.saturating_add(*tokens);
            if above > below {
                let corners = [(at * 10 - 4, below), (at * 10 + 4, above)];
                chart.draw_series(std::iter::once(Rectangle::new(corners, colour.filled())))?;
            }
            below = above;
        }
    }
    Ok(())
}

/// `12k`, `3.4M`: for the axis only; figures are shown in full.
fn short(tokens: u64) -> String {
    for (unit, name) in [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")] {
        if tokens >= unit {
            let tenths = tokens / (unit / 10);
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole}{name}") } else { format!("{whole}.{tenth}{name}") };
        }
    }
    tokens.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_every_day_is_a_bar_and_nothing_is_no_bar() {
        let day = |label: &str, tokens| Day { label: label.into(), tokens };
        let drawn = svg(&[day("1", [5, 0, 3, 0]), day("2", [0; 4]), day("<3>", [1, 1, 1, 1])]).unwrap();
        assert_eq!(drawn.matches("<rect").count(), 6, "{drawn}");
        assert!(drawn.contains("#2563EB"), "{drawn}");
        assert!(!drawn.contains("<3>") && !drawn.contains("style="), "{drawn}");
        assert_eq!(svg(&[]).unwrap().matches("<rect").count(), 0);
        svg(&[day("1", [u64::MAX, u64::MAX, 1, 0])]).unwrap();
    }

    #[test]
    fn the_axis_is_short() {
        for (tokens, text) in [(0, "0"), (999, "999"), (1_000, "1k"), (3_450_000, "3.4M"), (2_000_000_000, "2G")] {
            assert_eq!(short(tokens), text);
        }
    }
}
