"""Pictures of faces that machines recognise and people do not, and the way back. Needs the extras ``train`` and ``faces``."""

from edgeopt.extras import needs

with needs("edgeopt.privacy", "train"):
    from edgeopt.privacy.baselines import PixelPgd as PixelPgd
    from edgeopt.privacy.baselines import appearance_swap as appearance_swap
    from edgeopt.privacy.diffusion import Denoiser as Denoiser
    from edgeopt.privacy.diffusion import Diffusion as Diffusion
    from edgeopt.privacy.diffusion import FaceCoder as FaceCoder
    from edgeopt.privacy.edge import EdgeFaces as EdgeFaces
    from edgeopt.privacy.edge import edge_faces as edge_faces
    from edgeopt.privacy.face_models import FaceModels as FaceModels
    from edgeopt.privacy.face_sets import FACE_SETS as FACE_SETS
    from edgeopt.privacy.face_sets import FaceSet as FaceSet
    from edgeopt.privacy.face_sets import LfwFaces as LfwFaces
    from edgeopt.privacy.face_sets import SyntheticFaces as SyntheticFaces
    from edgeopt.privacy.faces import APPEARANCE as APPEARANCE
    from edgeopt.privacy.faces import IDENTITY as IDENTITY
    from edgeopt.privacy.faces import View as View
    from edgeopt.privacy.faces import random_numbers as random_numbers
    from edgeopt.privacy.faces import render as render
    from edgeopt.privacy.hiding_training import pretrain_hiding as pretrain_hiding
    from edgeopt.privacy.nested import NestedNetwork as NestedNetwork
    from edgeopt.privacy.nested import train_nested as train_nested
    from edgeopt.privacy.picture_code import PictureCode as PictureCode
    from edgeopt.privacy.pictures import as_face as as_face
    from edgeopt.privacy.pictures import ssim as ssim
    from edgeopt.privacy.pictures import to_array as to_array
    from edgeopt.privacy.pictures import to_tensor as to_tensor
    from edgeopt.privacy.recognisers import HELD_OUT as HELD_OUT
    from edgeopt.privacy.recognisers import RECOGNISERS as RECOGNISERS
    from edgeopt.privacy.recognisers import AppearanceReader as AppearanceReader
    from edgeopt.privacy.recognisers import Recogniser as Recogniser
    from edgeopt.privacy.recognisers import Threshold as Threshold
    from edgeopt.privacy.sider import Goals as Goals
    from edgeopt.privacy.sider import Objective as Objective
    from edgeopt.privacy.sider import Protected as Protected
    from edgeopt.privacy.sider import Sider as Sider
    from edgeopt.privacy.training import Training as Training
    from edgeopt.privacy.training import train_faces as train_faces
    from edgeopt.privacy.vault import Vault as Vault
