"""Arithmetic from text: numbers, names, operators and some functions, all of bounded size."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

from simpleeval import EvalWithCompoundTypes, FunctionNotDefined, InvalidExpression, NameNotDefined

from loraloom.errors import InputError

Value: TypeAlias = "bool | int | float | list[Value]"

MAX_LENGTH = 2000
MAX_DEPTH = 60
MAX_EXPONENT = 4000
MAX_BITS = 20_000


def _bounded(function: Callable[..., object]) -> Callable[..., object]:
    """The function for whole numbers of at most `MAX_BITS`."""

    def call(*values: object) -> object:
        for value in values:
            _check_size(value)
        result = function(*values)
        _check_size(result)
        return result

    return call


def _numeric(function: Callable[..., object]) -> Callable[..., object]:
    """An operator for numbers, and not for lists."""

    def call(*values: object) -> object:
        for value in values:
            if isinstance(value, list | tuple):
                raise InputError(
                    f"{str(list(cast('Sequence[object]', value)))[:40]} is a list; a number was expected"
                )
        return function(*values)

    return _bounded(call)


def _check_size(value: object) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise InputError("a value in the expression is too large")


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT:
        raise InputError(f"the exponent {exponent} is too large; at most {MAX_EXPONENT} is computed")
    if isinstance(base, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        return float(base) ** exponent
    result = base**exponent
    if isinstance(result, complex):
        raise InputError(f"{base} to the power of {exponent} is no real number")
    return result


def _round(value: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MAX_EXPONENT:
        raise InputError(f"{digits} digits are too many; at most {MAX_EXPONENT} are rounded to")
    return round(value, digits)


def _sum(*values: object) -> object:
    terms = values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else values
    return sum(cast("Sequence[float]", terms))


_OPERATORS: Mapping[type[ast.AST], Callable[..., object]] = {
    kind: _numeric(function)
    for kind, function in {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: _power,
        ast.UAdd: operator.pos,
        ast.USub: operator.neg,
        ast.Not: operator.not_,
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
    }.items()
}

FUNCTIONS: Mapping[str, Callable[..., object]] = {
    name: _bounded(function)
    for name, function in {
        "sum": _sum,
        "min": min,
        "max": max,
        "abs": abs,
        "round": _round,
        "pow": _power,
        "sqrt": math.sqrt,
        "ceil": math.ceil,
        "floor": math.floor,
        "log": math.log,
        "log2": math.log2,
        "log10": math.log10,
        "sin": math.sin,
        "cos": math.cos,
        "tan": math.tan,
        "int": int,
        "float": float,
    }.items()
}


# What an expression may be made of, beside numbers.
_SYNTAX = (
    ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.IfExp, ast.Compare, ast.Call, ast.List, ast.Tuple,
    ast.Subscript, ast.expr_context, ast.boolop, *_OPERATORS,
)  # fmt: skip


def evaluate(expression: str, names: Mapping[str, Value]) -> bool | int | float:
    """The number that an expression means. Raises InputError that says what is wrong with it."""
    if len(expression) > MAX_LENGTH:
        raise InputError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are read")
    evaluator = EvalWithCompoundTypes(dict(_OPERATORS), names=dict(names))
    evaluator.functions = dict(FUNCTIONS)
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        _check(tree)
        result: object = evaluator.eval(expression, tree)
        _check_size(result)
    except NameNotDefined as error:
        raise InputError(f"{error.name!r} is not known; known are {', '.join(names) or 'no names'}") from None
    except FunctionNotDefined as error:
        raise InputError(
            f"there is no function {error.func_name!r}; there are {', '.join(FUNCTIONS)}"
        ) from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"the expression {expression!r} cannot be read: {error}") from error
    except (ArithmeticError, LookupError, ValueError, TypeError, InvalidExpression) as error:
        raise InputError(f"the expression {expression!r} has no value: {error}") from error
    if not isinstance(result, bool | int | float):
        raise InputError(f"the expression {expression!r} gives no number")
    return result


def _check(node: ast.AST, depth: int = 0) -> None:
    """InputError for what is no arithmetic; the rest is for the evaluator to say."""
    if depth > MAX_DEPTH and isinstance(node, ast.expr):
        raise InputError(f"the expression is nested more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return
    if not isinstance(node, _SYNTAX):
        found = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        raise InputError(f"{found!r} is not allowed in an expression")
    for part in ast.iter_child_nodes(node):
        _check(part, depth + 1)
