"""What bisecting found, in words: where they part, the node, the likely cause, and last EQUAL or DIFFERENT."""

from export.bisect.result import Bisection, Node, Parting


def render(found: Bisection) -> str:
    """Returns the text for stdout; its last line is EQUAL or DIFFERENT."""
    head = f"A      {found.a}\nB      {found.b}\ntruth  A, {found.truth}; compared at {found.dtype}\n"
    if found.equal:
        notes = "".join(f"note   {note}\n" for note in found.notes)
        return f"{head}{notes}Every output is within its budget in {_counted(found.cases, 'case')}.\nEQUAL\n"
    lines = [head, f"They part in case {found.case} ({_counted(found.compared, 'tensor')} compared).\n\n"]
    if found.block is not None and found.tensor is not None and found.block.name != found.tensor.name:
        lines.append(f"block   {_where(found.block)}\n")
    if found.tensor is not None:
        lines.append(f"tensor  {_where(found.tensor)}\n        {found.tensor.reason}\n")
    if found.node is not None:
        lines.append(f"node    {_node(found.node)}\n")
    others = [node for node in found.suspects if found.node is None or node.name != found.node.name]
    if others and found.cause is None:
        lines.append(f"beside  {', '.join(f'{node.op} {node.name}' for node in others)}\n")
    if found.cause is None:
        lines.append("cause   none of those that are known gives what B gives\n")
    else:
        close = "" if found.cause.ratio is None else f" (B is within {found.cause.ratio:.2f} of the budget of that)"
        lines.append(f"cause   {found.cause.code}: {found.cause.sentence}{close}\n")
        lines += [f"or      {cause.code}: {cause.sentence}\n" for cause in found.also]
    lines += [f"note    {note}\n" for note in found.notes]
    return "".join(lines) + "DIFFERENT\n"


def _where(parting: Parting) -> str:
    key = "" if parting.key == parting.name else f" ({parting.key or 'the module'} in A)"
    if parting.worst is None or parting.expected is None or parting.actual is None:
        return f"{parting.name}{key}"
    place = f"{list(parting.worst)} is {parting.actual:.6g}, must be {parting.expected:.6g}"
    ratio = "" if parting.ratio is None else f"; error/budget {parting.ratio:.4g}"
    return f"{parting.name}{key}: {place}{ratio}"


def _node(node: Node) -> str:
    module = f" of module {node.module}" if node.module else ""
    source = f" [{node.source}]" if node.source else ""
    return f"{node.op} {node.name}{module}{source}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
