"""LaTeX math as Unicode where that can be done: x², √2, ∑, α.

Pure. What it does not know makes the whole formula stay as it was written.
"""

from __future__ import annotations

import re

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε",
    "varepsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ", "iota": "ι",
    "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ",
    "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω", "times": "×", "cdot": "·", "cdots": "⋯", "ldots": "…",
    "dots": "…", "div": "÷", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "equiv": "≡",
    "sim": "∼", "propto": "∝", "infty": "∞", "sum": "∑", "prod": "∏", "int": "∫",
    "partial": "∂", "nabla": "∇", "in": "∈", "notin": "∉", "subset": "⊂",
    "subseteq": "⊆", "cup": "∪", "cap": "∩", "emptyset": "∅", "forall": "∀",
    "exists": "∃", "neg": "¬", "land": "∧", "lor": "∨", "to": "→",
    "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒", "Leftarrow": "⇐",
    "iff": "⇔", "implies": "⇒", "mapsto": "↦", "circ": "∘", "degree": "°",
    "langle": "⟨", "rangle": "⟩", "ell": "ℓ", "hbar": "ℏ", "quad": "  ",
    "qquad": "    ", "left": "", "right": "", "sin": "sin", "cos": "cos",
    "tan": "tan", "log": "log", "ln": "ln", "exp": "exp", "min": "min",
    "max": "max", "lim": "lim", "det": "det", "mid": "|", "star": "⋆",
}  # fmt: skip
_SETS = {"R": "ℝ", "N": "ℕ", "Z": "ℤ", "Q": "ℚ", "C": "ℂ"}
_SIGNS = {",": " ", ";": " ", ":": " ", "!": "", " ": " ", "{": "{", "}": "}"}
_SIGNS |= {"%": "%", "$": "$", "&": "&", "#": "#", "_": "_", "\\": "\n", "|": "‖"}
_UP = str.maketrans("0123456789+-=()nijkxyTabcm", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱʲᵏˣʸᵀᵃᵇᶜᵐ")
_DOWN = str.maketrans("0123456789+-=()nijkxaomt", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢⱼₖₓₐₒₘₜ")
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\[dt]?frac\s*{_GROUP}\s*{_GROUP}")
_ROOT = re.compile(rf"\\sqrt\s*{_GROUP}")
_TEXT = re.compile(rf"\\(?:text|mathrm|mathbf|mathit|operatorname|boxed)\s*{_GROUP}")
_SET = re.compile(r"\\mathbb\s*\{?([RNZQC])\}?")
_SCRIPT = re.compile(rf"([\^_])(?:{_GROUP}|(\\?\w|[+\-*']))")


def math_text(tex: str) -> str:
    """The formula in Unicode, or as it was where something in it is not known."""
    text = _SET.sub(lambda match: _SETS[match[1]], tex.strip())
    text = _TEXT.sub(lambda match: match[1], text)
    for _ in range(4):  # as deep as fractions and roots may be nested
        text = _FRACTION.sub(lambda match: _fraction(match[1], match[2]), text)
        text = _ROOT.sub(lambda match: f"√{_bracketed(match[1])}", text)
    text = re.sub(r"\\([A-Za-z]+)", _symbol, text)
    if re.search(r"\\[A-Za-z]", text):
        return tex
    text = _SCRIPT.sub(_script, text)
    text = re.sub(r"\\(.)", lambda match: _SIGNS.get(match[1], match[0]), text)
    text = text.replace("{", "").replace("}", "")
    return re.sub(r"[ \t]+", " ", text).strip()


def _symbol(match: re.Match[str]) -> str:
    return _SYMBOLS.get(match[1], match[0])


def _fraction(above: str, below: str) -> str:
    return f"{_bracketed(above)}/{_bracketed(below)}"


def _bracketed(text: str) -> str:
    is_short = re.fullmatch(r"\\?\w+", text.strip()) is not None
    return text.strip() if is_short else f"({text.strip()})"


def _script(match: re.Match[str]) -> str:
    """A small letter above or below, where Unicode has it for every sign."""
    text = match[2] if match[2] is not None else match[3]
    table = _UP if match[1] == "^" else _DOWN
    if text and all(ord(character) in table for character in text):
        return text.translate(table)
    return f"{match[1]}{text}" if len(text) == 1 else f"{match[1]}({text})"
