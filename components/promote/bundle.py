"""The evidence bundle of a promotion: what a stranger needs to check, rebuild and use the version, in one folder.

Filed before the ledger names it, and once for each verdict of a run: what a step that was cut off has filed counts when
it is run again, for a signature is another each time. Not covered: the ledger (`step`), auditing (`pipelines.audit`).
"""

from __future__ import annotations

import json

from components.core.contracts import Evaluation, EvidenceBundle, Verdict, WindowDocument
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.rematches import last_judgement
from components.core.runs import Run, perform
from components.core.storage import sha256_hex, to_json
from components.promote.card import write_card
from components.promote.provenance import trace
from components.promote.sbom import list_packages
from components.promote.signature import EVIDENCE, SIGNATURE, VERSION, sign

SERVING = "serving"  # the folder of the bundle that is a model repository of Triton


def file_evidence(record: Run, registry: Registry, rung: int, actor: str) -> EvidenceBundle:
    """File the evidence for what the gate passed at last, or find what was filed for this verdict before.

    Raises:
        IntegrityError: Files of the version, or of evidence that was filed before, are not what was written.
        BrokenModel: An exported graph does not say what the model says.
        ConfigurationError: A graph cannot be exported, the key is none, or a package is missing.
    """
    evaluation, verdict = last_judgement(record, rung)
    assert evaluation is not None, "what was judged was evaluated"
    assert verdict is not None, "what is promoted was judged"
    step = f"evidence-{sha256_hex(to_json(verdict))[:12]}"
    filed = perform(step, record, EvidenceBundle, lambda: _file(record, registry, evaluation, verdict, actor))
    registry.evidence(filed.digest).verify()
    return filed


def _file(record: Run, registry: Registry, evaluation: Evaluation, verdict: Verdict, actor: str) -> EvidenceBundle:
    config, version, decision = record.config, verdict.challenger, record.need("decide", Decision)
    provenance = trace(registry, version, record, decision, actor)
    spec = json.loads(registry.read_file(version, "model.json"))
    documents = {
        "evaluation.json": to_json(evaluation),
        "verdict.json": to_json(verdict),
        "decision.json": to_json(decision),
        "provenance.json": to_json(provenance),
        "sbom.json": list_packages(),
        "card.md": write_card(config, spec, evaluation, verdict, provenance).encode(),
    }
    files = {**documents, **_graphs(record, registry, version)}
    if config.promotion.signing_key:
        signed = {f"{VERSION}/{name}": data for name, data in registry.version(version).files().items()}
        signed |= {f"{EVIDENCE}/{name}": data for name, data in files.items()}
        files[SIGNATURE] = sign(signed, config.promotion.signing_key)
    digest = registry.save_evidence(files)
    return EvidenceBundle(version=version, digest=digest, files=len(files), signed=SIGNATURE in files)


def _graphs(record: Run, registry: Registry, version: str) -> dict[str, bytes]:
    """The graphs that the configuration asks for; without any, torch stays out of this process."""
    if not record.config.promotion.exports:
        return {}
    from components.promote.graphs import ONNX, export_graphs

    config = record.config
    graphs = export_graphs(registry, version, config, record.need("ingest", WindowDocument).id)
    places = {ONNX: f"{SERVING}/{config.model}/1/{ONNX}"}
    return {places.get(name, name): data for name, data in graphs.items()}
