//! The one error type of the core.

/// What can go wrong; every variant names the offending value and what was wanted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A size does not fit.
    #[error("{name}: {got} is not {wanted}")]
    Shape {
        /// The argument at fault.
        name: &'static str,
        /// The size that was given.
        got: usize,
        /// What it should have been.
        wanted: String,
    },
    /// The columns cannot be cut into groups.
    #[error("{name}: {columns} columns is not a multiple of group = {group}")]
    NotAMultiple {
        /// The argument at fault.
        name: &'static str,
        /// Its number of columns.
        columns: usize,
        /// The group size M of the pattern.
        group: usize,
    },
    /// A NaN or an infinity.
    #[error(
        "{name}: entry ({row}, {column}) is {}, only finite values are accepted",
        .value.to_string().to_lowercase() // nan and inf, as Python writes them
    )]
    NotFinite {
        /// The argument at fault.
        name: &'static str,
        /// Row of the first such entry.
        row: usize,
        /// Its column.
        column: usize,
        /// The entry itself.
        value: f64,
    },
    /// A number outside its range.
    #[error("{name}: {got} is not {wanted}")]
    Value {
        /// The argument at fault.
        name: &'static str,
        /// The number that was given.
        got: f64,
        /// The range it should lie in.
        wanted: &'static str,
    },
    /// A setting that is no choice.
    #[error("{name}: {got:?} is not {wanted}")]
    Setting {
        /// The argument or environment variable at fault.
        name: &'static str,
        /// The word that was given.
        got: String,
        /// What it could have been.
        wanted: String,
    },
    /// An N:M pattern that is none.
    #[error("pattern {keep}:{group}: N:M needs 1 <= N < M <= 32")]
    Pattern {
        /// N, the weights kept of a group.
        keep: usize,
        /// M, the size of a group.
        group: usize,
    },
    /// A mask or a weight matrix that breaks its pattern.
    #[error(
        "{name}: row {row}, group {index} keeps {got} of {group}, pattern {keep}:{group} allows {keep}"
    )]
    BreaksPattern {
        /// The argument at fault.
        name: &'static str,
        /// Row of the first bad group.
        row: usize,
        /// Index of the group in its row.
        index: usize,
        /// Entries it keeps.
        got: usize,
        /// N.
        keep: usize,
        /// M.
        group: usize,
    },
    /// A matrix of second moments whose two halves differ.
    #[error(
        "{name}: entry ({row}, {column}) is {lower} and entry ({column}, {row}) is {upper}, wanted a symmetric matrix"
    )]
    NotSymmetric {
        /// The argument at fault.
        name: &'static str,
        /// Row of the entry below the diagonal.
        row: usize,
        /// Its column.
        column: usize,
        /// The entry below the diagonal.
        lower: f64,
        /// Its mirror image.
        upper: f64,
    },
    /// Second moments that no data can have.
    #[error("{name}: not positive semidefinite, {detail}")]
    Indefinite {
        /// The argument at fault.
        name: &'static str,
        /// What shows it.
        detail: String,
    },
    /// An iteration that did not end where it should.
    #[error("{routine} did not converge: {detail}")]
    Convergence {
        /// The routine that gave up.
        routine: &'static str,
        /// Where it stood.
        detail: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Result of a routine of the core.
pub type Result<T> = std::result::Result<T, Error>;
