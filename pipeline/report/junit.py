"""The verdict as JUnit XML, which every CI system shows."""

from collections import Counter
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from compress.pipeline.fidelity import verdict_sentence
from compress.pipeline.records import Gate, ProbeAdequacy, ValidateRecord
from compress.pipeline.report.text import visible

_OUTCOMES = {"FAIL": "failure", "INCONCLUSIVE": "error"}


def to_junit(validation: ValidateRecord) -> bytes:
    """One test case for each gate of each artifact, and one for the probes.

    A gate that failed is a failure, one that could not be decided an error of type `inconclusive`. What does not decide
    the verdict is skipped instead, so that the file is green exactly when the verdict is PASS.

    Source: the JUnit schema as Jenkins, GitLab and GitHub's reporters read it (testsuites, testsuite, testcase).
    """
    suite = Element("testsuite", name="compress fidelity")
    for row in validation.ledger:
        for gate in row.gates:
            _add_gate(suite, row.artifact, gate, decides=row.artifact == validation.shipped)
    _add_adequacy(suite, validation.adequacy)
    found = Counter(outcome.tag for outcome in suite.iterfind("testcase/*"))
    for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(found[tag]))
    suite.set("tests", str(len(suite)))
    SubElement(suite, "system-out").text = visible(verdict_sentence(validation))
    root = Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _add_gate(suite: Element, artifact: str, gate: Gate, *, decides: bool) -> None:
    case = SubElement(suite, "testcase", classname=visible(artifact), name=gate.name)
    if gate.verdict == "PASS":
        return
    if decides:
        SubElement(case, _OUTCOMES[gate.verdict], type=gate.verdict.lower(), message=visible(gate.explanation))
    else:
        SubElement(case, "skipped", message=visible(f"{gate.verdict}, but not what is shipped: {gate.explanation}"))


def _add_adequacy(suite: Element, adequacy: ProbeAdequacy) -> None:
    case = SubElement(suite, "testcase", classname="probes", name="adequacy")
    if not adequacy.adequate:
        SubElement(case, "error", type="inconclusive", message=visible("; ".join(adequacy.reasons)))
