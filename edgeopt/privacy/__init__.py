"""Pictures of faces that machines recognise and people do not, and the way back. Needs the extras ``train`` and ``faces``."""

from edgeopt.extras import needs

with needs("edgeopt.privacy", "train"):
    from edgeopt.privacy.hiding_training import pretrain_hiding as pretrain_hiding
    from edgeopt.privacy.nested import NestedNetwork as NestedNetwork
    from edgeopt.privacy.nested import train_nested as train_nested
    from edgeopt.privacy.picture_code import PictureCode as PictureCode
    from edgeopt.privacy.vault import Vault as Vault
