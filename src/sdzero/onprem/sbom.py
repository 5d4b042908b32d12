"""What a bundle is made of, as CycloneDX 1.6: packages, models, data, their sums, licences and relations.

Written with the format's own library. Source: https://cyclonedx.org/docs/1.6/json/.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdzero.errors import UserError
from sdzero.onprem.bundle_files import files_below, sum_of
from sdzero.onprem.licences import NOT_STATED, licence_of, licence_of_model
from sdzero.onprem.wheel_metadata import Wheel

NAME = "sbom.cdx.json"


@dataclass(frozen=True)
class Parts:
    """What is in the bundle. `needs` gives the packages that each one needs."""

    wheels: Sequence[Wheel]
    needs: Mapping[str, Sequence[str]]
    models: Sequence[Path]
    data: Sequence[Path]


def require_library() -> None:
    """Raise UserError if the library is not installed."""
    if importlib.util.find_spec("cyclonedx") is None:
        raise UserError(
            "a bundle lists its parts with cyclonedx-python-lib, and that is not installed",
            "sdzero bundle",
            "pip install 'sdzero[bundle]'; only the side with a network needs it",
        )


def sbom_text(bundle: Path, parts: Parts) -> str:
    """The document. Files of models and data are components within theirs, each with its sum."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import License
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()

    def stated(text: str) -> list[License]:
        return [] if text == NOT_STATED else [licences.make_from_string(text)]

    def sums(file: Path) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=sum_of(file))]

    def with_files(root: Path, kind: ComponentType, licence: str) -> Component:
        name = str(root.relative_to(bundle))
        files = [root] if root.is_file() else list(files_below(root))
        inner = [
            Component(
                type=ComponentType.FILE,
                name=str(file.relative_to(bundle)),
                bom_ref=f"file:{file.relative_to(bundle)}",
                hashes=sums(file),
            )
            for file in files
        ]
        return Component(type=kind, name=name, bom_ref=name, licenses=stated(licence), components=inner)

    components: dict[str, Component] = {}
    for wheel in parts.wheels:
        components[wheel.name] = Component(
            type=ComponentType.APPLICATION if wheel.name == "sdzero" else ComponentType.LIBRARY,
            name=wheel.name,
            version=str(wheel.version),
            bom_ref=f"{wheel.name}=={wheel.version}",
            purl=PackageURL("pypi", None, wheel.name, str(wheel.version)),
            licenses=stated(licence_of(wheel)),
            hashes=sums(wheel.file),
        )
    root = components.pop("sdzero")
    bom = Bom()
    bom.metadata.component = root
    others = [
        with_files(one, ComponentType.MACHINE_LEARNING_MODEL, licence_of_model(one)) for one in parts.models
    ]
    others += [with_files(one, ComponentType.DATA, NOT_STATED) for one in parts.data]
    for component in (*components.values(), *others):
        bom.components.add(component)
    for name, needed in parts.needs.items():
        own = root if name == "sdzero" else components[name]
        extra = others if name == "sdzero" else []
        bom.register_dependency(own, [*(components[one] for one in needed), *extra])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    return text + "\n"
